//! Records: structs whose fields are stored one after the other, little-endian, without padding.
//! The `record!` macro writes both directions and keeps the field list that formats/*.md is tested against.
//! Spec: formats/records.md.

use super::bytes::{FormatError, Reader, Writer};
use super::show::Shown;
use crate::base::{
    BackupId, ChunkId, ClusterName, Generation, Lsn, ObjectId, RepositoryId, SlotName, StreamId, SystemId,
    TimelineId, Timestamp,
};

/// A value with one stored form.
pub trait Field: Sized {
    /// The type's name in formats/records.md, without its parameters.
    const TYPE: &'static str;
    /// The type's name in formats/records.md: `list<StreamEntry>`.
    fn type_name() -> String {
        Self::TYPE.to_owned()
    }
    /// Appends the stored form.
    fn put(&self, to: &mut Writer);
    /// Reads it back.
    fn get(from: &mut Reader<'_>) -> Result<Self, FormatError>;
    /// The value for people.
    fn show(&self) -> Shown;
}

/// A struct of fields, stored in order.
pub trait Record: Field {
    /// Name and type of each field, in stored order.
    fn fields() -> Vec<(&'static str, String)>;

    /// The stored form of each field, in the same order.
    fn parts(&self) -> Vec<Vec<u8>>;

    /// The stored form.
    fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        self.put(&mut writer);
        writer.into_bytes()
    }

    /// Reads the stored form; refuses bytes left over.
    fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(Self::TYPE, bytes);
        let record = Self::get(&mut reader)?;
        reader.finish()?;
        Ok(record)
    }
}

/// The stored form of one value.
pub fn stored(value: &impl Field) -> Vec<u8> {
    let mut writer = Writer::new();
    value.put(&mut writer);
    writer.into_bytes()
}

/// Declares a struct and its stored form: the fields in the order written.
macro_rules! record {
    ($(#[$doc:meta])* pub struct $name:ident { $($(#[$fdoc:meta])* pub $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name { $($(#[$fdoc])* pub $field: $type,)* }

        impl $crate::format::record::Field for $name {
            const TYPE: &'static str = stringify!($name);
            fn put(&self, to: &mut $crate::format::Writer) {
                $($crate::format::record::Field::put(&self.$field, to);)*
            }
            fn get(from: &mut $crate::format::Reader<'_>) -> Result<Self, $crate::format::FormatError> {
                Ok($name { $($field: $crate::format::record::Field::get(from)?,)* })
            }
            fn show(&self) -> $crate::format::show::Shown {
                $crate::format::show::Shown::Record(
                    vec![$((stringify!($field), $crate::format::record::Field::show(&self.$field)),)*]
                )
            }
        }

        impl $crate::format::record::Record for $name {
            fn fields() -> Vec<(&'static str, String)> {
                vec![$((stringify!($field), <$type as $crate::format::record::Field>::type_name()),)*]
            }
            fn parts(&self) -> Vec<Vec<u8>> {
                vec![$($crate::format::record::stored(&self.$field),)*]
            }
        }
    };
}
pub(crate) use record;

/// Declares an enum of unit variants stored as one byte; an unknown byte is refused.
macro_rules! code {
    ($(#[$doc:meta])* pub enum $name:ident { $($(#[$vdoc:meta])* $variant:ident = $value:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[$vdoc])* $variant = $value,)* }

        impl $name {
            /// Every variant, in stored order.
            pub const ALL: &'static [$name] = &[$($name::$variant,)*];
        }

        impl $crate::format::record::Field for $name {
            const TYPE: &'static str = stringify!($name);
            fn put(&self, to: &mut $crate::format::Writer) {
                to.put(&[*self as u8]);
            }
            fn get(from: &mut $crate::format::Reader<'_>) -> Result<Self, $crate::format::FormatError> {
                let error = from.clone();
                match <u8 as $crate::format::record::Field>::get(from)? {
                    $($value => Ok($name::$variant),)*
                    other => Err(error.error(other, concat!("a code of ", stringify!($name)))),
                }
            }
            fn show(&self) -> $crate::format::show::Shown {
                $crate::format::show::Shown::Text(format!("{self:?}"))
            }
        }
    };
}
pub(crate) use code;

macro_rules! integer {
    ($($type:ident)*) => {$(
        impl Field for $type {
            const TYPE: &'static str = stringify!($type);
            fn put(&self, to: &mut Writer) {
                to.put(&self.to_le_bytes());
            }
            fn get(from: &mut Reader<'_>) -> Result<Self, FormatError> {
                Ok($type::from_le_bytes(from.array()?))
            }
            fn show(&self) -> Shown {
                Shown::number(*self)
            }
        }
    )*};
}
integer!(u8 u16 u32 u64 i64);

macro_rules! wrapped {
    ($($type:ident: $inner:ident, $put:expr, $get:expr;)*) => {$(
        impl Field for $type {
            const TYPE: &'static str = stringify!($type);
            fn put(&self, to: &mut Writer) {
                let put: fn(&$type) -> $inner = $put;
                put(self).put(to);
            }
            fn get(from: &mut Reader<'_>) -> Result<Self, FormatError> {
                let get: fn($inner) -> $type = $get;
                Ok(get($inner::get(from)?))
            }
            fn show(&self) -> Shown {
                Shown::text(self)
            }
        }
    )*};
}
wrapped! {
    Lsn: u64, |v| v.get(), Lsn::new;
    Timestamp: i64, |v| v.micros(), Timestamp::from_micros;
    TimelineId: u32, |v| v.0, TimelineId;
    Generation: u32, |v| v.0, Generation;
    SystemId: u64, |v| v.0, SystemId;
}

macro_rules! id {
    ($($type:ident)*) => {$(
        impl Field for $type {
            const TYPE: &'static str = stringify!($type);
            fn put(&self, to: &mut Writer) {
                to.put(&self.0);
            }
            fn get(from: &mut Reader<'_>) -> Result<Self, FormatError> {
                Ok($type(from.array()?))
            }
            fn show(&self) -> Shown {
                Shown::text(self)
            }
        }
    )*};
}
id!(RepositoryId StreamId ObjectId ChunkId);

macro_rules! byte_array {
    ($($length:literal: $type:literal;)*) => {$(
        impl Field for [u8; $length] {
            const TYPE: &'static str = $type;
            fn put(&self, to: &mut Writer) {
                to.put(self);
            }
            fn get(from: &mut Reader<'_>) -> Result<Self, FormatError> {
                from.array()
            }
            fn show(&self) -> Shown {
                Shown::Bytes(self.to_vec())
            }
        }
    )*};
}
byte_array! {
    16: "bytes16";
    32: "bytes32";
    64: "bytes64";
    80: "bytes80";
}

impl Field for bool {
    const TYPE: &'static str = "bool";
    fn put(&self, to: &mut Writer) {
        u8::from(*self).put(to);
    }
    fn get(from: &mut Reader<'_>) -> Result<Self, FormatError> {
        let before = from.clone();
        match u8::get(from)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(before.error(other, "0 or 1")),
        }
    }
    fn show(&self) -> Shown {
        Shown::Flag(*self)
    }
}

/// A length in 32 bits, then UTF-8.
impl Field for String {
    const TYPE: &'static str = "text";
    fn put(&self, to: &mut Writer) {
        length(self.len()).put(to);
        to.put(self.as_bytes());
    }
    fn get(from: &mut Reader<'_>) -> Result<Self, FormatError> {
        let count = u32::get(from)?;
        let before = from.clone();
        let bytes = from.take(count as usize)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| before.error("bytes that are not UTF-8", "text"))
    }
    fn show(&self) -> Shown {
        Shown::Text(self.clone())
    }
}

/// A length in 32 bits, then the bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Blob(pub Vec<u8>);

impl Field for Blob {
    const TYPE: &'static str = "blob";
    fn put(&self, to: &mut Writer) {
        length(self.0.len()).put(to);
        to.put(&self.0);
    }
    fn get(from: &mut Reader<'_>) -> Result<Self, FormatError> {
        let count = u32::get(from)?;
        Ok(Blob(from.take(count as usize)?.to_vec()))
    }
    fn show(&self) -> Shown {
        Shown::Blob(self.0.clone())
    }
}

macro_rules! parsed_text {
    ($($type:ident)*) => {$(
        impl Field for $type {
            const TYPE: &'static str = stringify!($type);
            fn put(&self, to: &mut Writer) {
                self.as_str().to_owned().put(to);
            }
            fn get(from: &mut Reader<'_>) -> Result<Self, FormatError> {
                let before = from.clone();
                let text = String::get(from)?;
                text.parse().map_err(|error: crate::base::ids::IdError| before.error(&error.found, error.expected))
            }
            fn show(&self) -> Shown {
                Shown::text(self)
            }
        }
    )*};
}
parsed_text!(ClusterName BackupId SlotName);

/// A count in 32 bits, then the items.
impl<T: Field> Field for Vec<T> {
    const TYPE: &'static str = "list";
    fn type_name() -> String {
        format!("list<{}>", T::type_name())
    }
    fn put(&self, to: &mut Writer) {
        length(self.len()).put(to);
        self.iter().for_each(|item| item.put(to));
    }
    fn get(from: &mut Reader<'_>) -> Result<Self, FormatError> {
        let count = u32::get(from)? as usize;
        // Every item takes a byte at least, so a hostile count reserves no more than the input's size.
        if count > from.remaining() {
            return Err(from.error(format!("{} bytes left", from.remaining()), format!("{count} items")));
        }
        let mut items = Vec::new();
        for _ in 0..count {
            items.push(T::get(from)?);
        }
        Ok(items)
    }
    fn show(&self) -> Shown {
        Shown::List(self.iter().map(Field::show).collect())
    }
}

/// A byte 0 for nothing, or 1 and the value.
impl<T: Field> Field for Option<T> {
    const TYPE: &'static str = "option";
    fn type_name() -> String {
        format!("option<{}>", T::type_name())
    }
    fn put(&self, to: &mut Writer) {
        self.is_some().put(to);
        if let Some(value) = self {
            value.put(to);
        }
    }
    fn get(from: &mut Reader<'_>) -> Result<Self, FormatError> {
        Ok(if bool::get(from)? { Some(T::get(from)?) } else { None })
    }
    fn show(&self) -> Shown {
        self.as_ref().map_or(Shown::Nothing, Field::show)
    }
}

/// A length as stored. Nothing of ours comes near 4 GiB in one record.
fn length(count: usize) -> u32 {
    assert!(u32::try_from(count).is_ok(), "a record holds {count} items");
    count as u32
}

record! {
    /// A later version's optional field, which this one may skip.
    pub struct Extension {
        /// Which field.
        pub tag: u16,
        /// Its stored form.
        pub value: Blob,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_counts_reserve_nothing() {
        let mut writer = Writer::new();
        u32::MAX.put(&mut writer);
        let bytes = writer.into_bytes();
        assert!(Vec::<u64>::get(&mut Reader::new("list", &bytes)).is_err());
        assert!(String::get(&mut Reader::new("text", &bytes)).is_err());
    }

    #[test]
    fn refuses_leftover_bytes() {
        let mut bytes = Extension { tag: 1, value: Blob(vec![1, 2]) }.encode();
        assert!(Extension::decode(&bytes).is_ok());
        bytes.push(0);
        assert!(Extension::decode(&bytes).is_err());
    }
}
