//! What damage costs, in the operator's terms: lost WAL (see [`crate::repo::cost`]), and objects that nothing leads to. Pure.

use crate::base::ObjectKey;
pub use crate::repo::cost::{LostWal, of_wal};

/// What a damaged object costs that nothing leads to.
pub fn unreferenced(key: &ObjectKey) -> String {
    let parts: Vec<&str> = key.as_str().split('/').collect();
    match parts.as_slice() {
        ["walden"] => "everything: without the marker this is no repository".into(),
        ["keys", "epochs", epoch, slot] => format!("key slot {slot} does not open key epoch {epoch}"),
        ["keys", slot] => format!("key slot {slot} opens nothing"),
        ["clusters", _, "roots", _] => "nothing, unless it is the newest root".into(),
        ["clusters", _, "floors", _] => {
            "nothing now; the newest root cannot be found without the newest floor".into()
        }
        ["clusters", name, "generations", _] => format!("cluster {name} cannot be told from another"),
        ["clusters", _, "wal", stream, number] => {
            format!("nothing, unless stream {stream} is not compacted up to {number}")
        }
        ["clusters", _, "pending", _] => {
            "nothing, unless work goes on that it stands for: that will be expired".into()
        }
        ["clusters", name, "verifications", _] => {
            format!("nothing to restores; what was verified of cluster {name} before is forgotten")
        }
        _ => "nothing: no root leads to it".into(),
    }
}
