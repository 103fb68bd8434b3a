//! operate
