//! The measurements, one benchmark a file.

pub mod agent;
pub mod ci;
pub mod cold_build;
pub mod cpio;
pub mod fifty;
pub mod joins;
pub mod monitor;
pub mod overlay;
pub mod placement;
pub mod qemu_boot;
pub mod rebuild;
pub mod warm_up;
