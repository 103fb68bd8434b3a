//! Rows of the simple protocol: text values by position or by column name.

use super::WireError;
use bytes::Bytes;
use std::sync::Arc;

/// The column names of one answer, shared by its rows.
pub type Columns = Arc<[String]>;

/// One row. Values are text in the client encoding, or raw bytes where a walsender sends them so.
#[derive(Clone, PartialEq, Eq)]
pub struct Row {
    columns: Columns,
    values: Vec<Option<Bytes>>,
}

impl Row {
    /// A row of `columns`, which has as many names as there are values.
    pub fn new(columns: Columns, values: Vec<Option<Bytes>>) -> Result<Self, WireError> {
        if columns.len() != values.len() {
            let reason = format!("{} values for {} columns", values.len(), columns.len());
            return Err(WireError::malformed("DataRow", reason));
        }
        Ok(Row { columns, values })
    }

    /// The number of columns.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether the row has no columns.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The value at `index` as text; `None` when it is NULL, absent or not UTF-8.
    pub fn get(&self, index: usize) -> Option<&str> {
        std::str::from_utf8(self.values.get(index)?.as_ref()?).ok()
    }

    /// The raw value at `index`; `None` when it is NULL or absent.
    pub fn bytes(&self, index: usize) -> Option<&Bytes> {
        self.values.get(index)?.as_ref()
    }

    /// The value of the column called `name` as text; `None` when it is NULL, absent or not UTF-8.
    pub fn by_name(&self, name: &str) -> Option<&str> {
        self.get(self.columns.iter().position(|column| column == name)?)
    }

    /// The value of `name`, which must be there and of type `T`.
    pub fn parse<T: std::str::FromStr>(&self, name: &'static str) -> Result<T, WireError> {
        self.parse_opt(name)?.ok_or_else(|| WireError::malformed(name, "column is absent or NULL"))
    }

    /// The value of `name`, which must be NULL, absent or of type `T`.
    pub fn parse_opt<T: std::str::FromStr>(&self, name: &'static str) -> Result<Option<T>, WireError> {
        let Some(text) = self.by_name(name) else { return Ok(None) };
        match text.parse() {
            Ok(value) => Ok(Some(value)),
            Err(_) => {
                let expected = std::any::type_name::<T>();
                Err(WireError::malformed(name, format!("found {text:?}, expected {expected}")))
            }
        }
    }

    /// The value of `name`, a boolean (`t` or `f`).
    pub fn bool(&self, name: &'static str) -> Result<bool, WireError> {
        match self.by_name(name) {
            Some("t" | "on" | "true") => Ok(true),
            Some("f" | "off" | "false") => Ok(false),
            other => Err(WireError::malformed(name, format!("found {other:?}, expected a boolean"))),
        }
    }
}

impl std::fmt::Debug for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let pairs = self.columns.iter().zip(&self.values);
        f.debug_map()
            .entries(pairs.map(|(name, value)| (name, value.as_deref().map(String::from_utf8_lossy))))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        let columns: Columns = ["a", "b", "c", "d"].map(str::to_owned).into();
        let value = |text: &'static [u8]| Some(Bytes::from_static(text));
        Row::new(columns, vec![value(b"42"), None, value(b"t"), value(b"\xff")]).unwrap()
    }

    #[test]
    fn finds_values_by_position_and_name() {
        let row = row();
        assert_eq!((row.get(0), row.by_name("a"), row.len()), (Some("42"), Some("42"), 4));
        assert_eq!((row.get(1), row.by_name("b"), row.by_name("x"), row.get(9)), (None, None, None, None));
        assert_eq!(row.parse::<u32>("a").unwrap(), 42);
        assert_eq!(row.parse_opt::<u32>("b").unwrap(), None);
        assert!(row.parse::<u32>("c").is_err() && row.parse::<u32>("b").is_err());
        assert!(row.bool("c").unwrap() && row.bool("a").is_err());
        assert_eq!((row.get(3), row.bytes(3).map(|b| b.len())), (None, Some(1)));
    }

    #[test]
    fn refuses_rows_that_do_not_fit_their_columns() {
        assert!(Row::new(["a".to_owned()].into(), vec![]).is_err());
    }
}
