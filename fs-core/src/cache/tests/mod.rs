mod loom_pins;
mod loom_shared;
mod stress;
