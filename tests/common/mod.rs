//! What integration tests share. Each test file uses a part of it.
#![allow(dead_code, missing_docs)]

pub mod archive;
pub mod crash;
pub mod keeping;
pub mod keys;
pub mod load;
pub mod mount;
pub mod pages;
pub mod pg;
pub mod restoring;
pub mod sim_backup;
pub mod sim_disk;
pub mod sim_server;
pub mod sim_store;
pub mod stores;
pub mod walden;
