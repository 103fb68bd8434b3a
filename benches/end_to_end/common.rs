//! The servers, places and archives of the tests.

#[path = "../../tests/common/archive.rs"]
#[allow(dead_code)]
pub mod archive;
#[path = "../../tests/common/pg.rs"]
#[allow(dead_code)]
pub mod pg;
#[path = "../../tests/common/walden.rs"]
#[allow(dead_code)]
pub mod walden;
