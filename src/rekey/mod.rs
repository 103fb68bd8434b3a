//! What an old key epoch still seals, moving it to the newest, and destroying the epoch. Spec: formats/keys.md.
//! [`census`] counts by headers, without keys; [`reseal`] moves; [`destroy`] refuses as long as anything may need the epoch.

pub mod census;
pub mod destroy;
pub mod reseal;
