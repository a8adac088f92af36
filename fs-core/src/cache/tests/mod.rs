mod loom_pins;
mod stress;
