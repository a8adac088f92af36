mod hostile;
mod loom_pins;
mod loom_shared;
mod shared;
mod stress;
