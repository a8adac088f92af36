mod apply;
mod corrupt;
mod fill;
mod harness;
mod model;
mod read;
