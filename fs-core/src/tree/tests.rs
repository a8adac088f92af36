mod apply;
mod corrupt;
mod counting;
mod fill;
mod harness;
mod model;
mod pack;
mod read;
