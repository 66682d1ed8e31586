//! Volumes: the disks of apps.

pub mod files;
