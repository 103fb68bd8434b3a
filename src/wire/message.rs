//! Messages of the server, decoded. The ordinary ones are taken apart by `postgres-protocol`; CopyBothResponse, which it
//! does not know, and CopyData, which must stay cheap, are ours.

use super::frame::Frame;
use super::{Columns, Row, WireError};
use bytes::Bytes;
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend;
use std::fmt;

/// CopyData's type byte.
pub const COPY_DATA: u8 = b'd';
/// CopyBothResponse's type byte.
pub const COPY_BOTH: u8 = b'W';

/// A message of the server.
#[derive(Debug)]
pub enum Message {
    /// What the server wants to see before it lets us in, or that it is satisfied.
    Authentication(Authentication),
    /// A setting that the server reports on its own.
    ParameterStatus {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
    },
    /// What a cancel request needs.
    BackendKey {
        /// The server process.
        process: i32,
        /// Its secret.
        secret: i32,
    },
    /// The server waits for a command.
    ReadyForQuery(TransactionStatus),
    /// Rows of these columns follow.
    RowDescription(Columns),
    /// One row's values.
    DataRow(Vec<Option<Bytes>>),
    /// A command is done; its tag.
    CommandComplete(String),
    /// The command was empty.
    EmptyQuery,
    /// A remark.
    Notice(ServerMessage),
    /// The command failed.
    Error(ServerMessage),
    /// The server wants CopyData.
    CopyIn,
    /// CopyData follows.
    CopyOut,
    /// CopyData follows in both directions.
    CopyBoth,
    /// A piece of COPY.
    CopyData(Bytes),
    /// The server sends no more CopyData.
    CopyDone,
    /// A message that nothing we do asks for, by its name.
    Other(&'static str),
}

/// An authentication request.
#[derive(Debug)]
pub enum Authentication {
    /// We are in.
    Ok,
    /// The password as it is.
    CleartextPassword,
    /// The password hashed with this salt.
    Md5 {
        /// The salt.
        salt: [u8; 4],
    },
    /// One of these SASL mechanisms.
    Sasl {
        /// Their names, in the server's order of preference.
        mechanisms: Vec<String>,
    },
    /// SASL goes on.
    SaslContinue(Bytes),
    /// SASL's last message.
    SaslFinal(Bytes),
    /// A method walden does not know, by its name.
    Unsupported(&'static str),
}

/// Whether a transaction is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransactionStatus {
    /// None.
    Idle,
    /// One.
    Open,
    /// One that failed and waits for its end.
    Failed,
}

/// An error or a notice, field by field (`protocol-error-fields`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerMessage {
    /// `ERROR`, `FATAL`, `PANIC`, `WARNING`, ... whatever the server's language.
    pub severity: String,
    /// SQLSTATE, five characters.
    pub code: String,
    /// The message.
    pub message: String,
    /// More about it.
    pub detail: Option<String>,
    /// What may help.
    pub hint: Option<String>,
}

impl fmt::Display for ServerMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.severity, self.code, self.message)?;
        if let Some(detail) = &self.detail {
            write!(f, " ({detail})")?;
        }
        Ok(())
    }
}

impl ServerMessage {
    fn decode(mut fields: backend::ErrorFields<'_>) -> Result<Self, WireError> {
        let mut found = ServerMessage::default();
        let malformed = |error| WireError::malformed("ErrorResponse", error);
        while let Some(field) = fields.next().map_err(malformed)? {
            let value = String::from_utf8_lossy(field.value_bytes()).into_owned();
            match field.type_() {
                b'S' if found.severity.is_empty() => found.severity = value,
                b'V' => found.severity = value,
                b'C' => found.code = value,
                b'M' => found.message = value,
                b'D' => found.detail = Some(value),
                b'H' => found.hint = Some(value),
                _ => {}
            }
        }
        Ok(found)
    }
}

impl Message {
    /// Decodes one frame.
    pub fn decode(frame: Frame) -> Result<Message, WireError> {
        match frame.tag() {
            COPY_DATA => Ok(Message::CopyData(frame.into_body())),
            COPY_BOTH => Ok(Message::CopyBoth),
            tag => Message::decode_ordinary(tag, frame),
        }
    }

    fn decode_ordinary(tag: u8, frame: Frame) -> Result<Message, WireError> {
        let malformed = |error: std::io::Error| {
            WireError::malformed("message", format!("type {:?}: {error}", char::from(tag)))
        };
        let text = |text: Result<&str, std::io::Error>| text.map(str::to_owned).map_err(malformed);
        let mut bytes = frame.into_bytes();
        let parsed = backend::Message::parse(&mut bytes).map_err(malformed)?;
        let Some(parsed) = parsed else { return Err(WireError::malformed("message", "cut short")) };
        Ok(match parsed {
            backend::Message::AuthenticationOk => Message::Authentication(Authentication::Ok),
            backend::Message::AuthenticationCleartextPassword => {
                Message::Authentication(Authentication::CleartextPassword)
            }
            backend::Message::AuthenticationMd5Password(body) => {
                Message::Authentication(Authentication::Md5 { salt: body.salt() })
            }
            backend::Message::AuthenticationSasl(body) => {
                let names = body.mechanisms().map(|name| Ok(name.to_owned())).collect();
                Message::Authentication(Authentication::Sasl { mechanisms: names.map_err(malformed)? })
            }
            backend::Message::AuthenticationSaslContinue(body) => {
                Message::Authentication(Authentication::SaslContinue(Bytes::copy_from_slice(body.data())))
            }
            backend::Message::AuthenticationSaslFinal(body) => {
                Message::Authentication(Authentication::SaslFinal(Bytes::copy_from_slice(body.data())))
            }
            backend::Message::AuthenticationGss | backend::Message::AuthenticationGssContinue(_) => {
                Message::Authentication(Authentication::Unsupported("GSSAPI"))
            }
            backend::Message::AuthenticationSspi => {
                Message::Authentication(Authentication::Unsupported("SSPI"))
            }
            backend::Message::AuthenticationKerberosV5 => {
                Message::Authentication(Authentication::Unsupported("Kerberos V5"))
            }
            backend::Message::AuthenticationScmCredential => {
                Message::Authentication(Authentication::Unsupported("SCM credentials"))
            }
            backend::Message::ParameterStatus(body) => {
                Message::ParameterStatus { name: text(body.name())?, value: text(body.value())? }
            }
            backend::Message::BackendKeyData(body) => {
                Message::BackendKey { process: body.process_id(), secret: body.secret_key() }
            }
            backend::Message::ReadyForQuery(body) => Message::ReadyForQuery(match body.status() {
                b'I' => TransactionStatus::Idle,
                b'T' => TransactionStatus::Open,
                b'E' => TransactionStatus::Failed,
                other => return Err(WireError::malformed("ReadyForQuery", format!("status {other}"))),
            }),
            backend::Message::RowDescription(body) => {
                let names = body.fields().map(|field| Ok(field.name().to_owned())).collect::<Vec<_>>();
                Message::RowDescription(names.map_err(malformed)?.into())
            }
            backend::Message::DataRow(body) => {
                let bytes = body.buffer_bytes();
                let values = body.ranges().map(|range| Ok(range.map(|range| bytes.slice(range)))).collect();
                Message::DataRow(values.map_err(malformed)?)
            }
            backend::Message::CommandComplete(body) => Message::CommandComplete(text(body.tag())?),
            backend::Message::EmptyQueryResponse => Message::EmptyQuery,
            backend::Message::NoticeResponse(body) => Message::Notice(ServerMessage::decode(body.fields())?),
            backend::Message::ErrorResponse(body) => Message::Error(ServerMessage::decode(body.fields())?),
            backend::Message::CopyInResponse(_) => Message::CopyIn,
            backend::Message::CopyOutResponse(_) => Message::CopyOut,
            backend::Message::CopyData(body) => Message::CopyData(body.into_bytes()),
            backend::Message::CopyDone => Message::CopyDone,
            backend::Message::NotificationResponse(_) => Message::Other("NotificationResponse"),
            backend::Message::ParseComplete => Message::Other("ParseComplete"),
            backend::Message::BindComplete => Message::Other("BindComplete"),
            backend::Message::CloseComplete => Message::Other("CloseComplete"),
            backend::Message::NoData => Message::Other("NoData"),
            backend::Message::ParameterDescription(_) => Message::Other("ParameterDescription"),
            backend::Message::PortalSuspended => Message::Other("PortalSuspended"),
            _ => Message::Other("a message of an unknown type"),
        })
    }

    /// The error that this message came where `expected` belongs. Values it carries are not repeated.
    pub fn unexpected(&self, expected: &'static str) -> WireError {
        let found = match self {
            Message::Authentication(_) => "an authentication request",
            Message::ParameterStatus { .. } => "ParameterStatus",
            Message::BackendKey { .. } => "BackendKeyData",
            Message::ReadyForQuery(_) => "ReadyForQuery",
            Message::RowDescription(_) => "RowDescription",
            Message::DataRow(_) => "DataRow",
            Message::CommandComplete(_) => "CommandComplete",
            Message::EmptyQuery => "EmptyQueryResponse",
            Message::Notice(_) => "NoticeResponse",
            Message::Error(error) => return WireError::Unexpected { found: error.to_string(), expected },
            Message::CopyIn => "CopyInResponse",
            Message::CopyOut => "CopyOutResponse",
            Message::CopyBoth => "CopyBothResponse",
            Message::CopyData(_) => "CopyData",
            Message::CopyDone => "CopyDone",
            Message::Other(name) => name,
        };
        WireError::Unexpected { found: found.to_owned(), expected }
    }
}

/// Rows gathered from RowDescription and DataRow.
#[derive(Debug, Default)]
pub struct RowGatherer {
    columns: Option<Columns>,
    rows: Vec<Row>,
}

impl RowGatherer {
    /// The answer's columns; rows of an earlier statement in the same command are dropped.
    pub fn describe(&mut self, columns: Columns) {
        self.rows.clear();
        self.columns = Some(columns);
    }

    /// One row.
    pub fn push(&mut self, values: Vec<Option<Bytes>>) -> Result<(), WireError> {
        let Some(columns) = &self.columns else {
            return Err(WireError::malformed("DataRow", "no RowDescription before it"));
        };
        if self.rows.len() >= super::limits::ROWS_MAX {
            let reason = format!("more than {} rows", super::limits::ROWS_MAX);
            return Err(WireError::malformed("DataRow", reason));
        }
        self.rows.push(Row::new(columns.clone(), values)?);
        Ok(())
    }

    /// The rows so far; the gatherer is empty then.
    pub fn take(&mut self) -> Vec<Row> {
        self.columns = None;
        std::mem::take(&mut self.rows)
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::{Taken, take_frame};
    use super::*;
    use bytes::BytesMut;
    use proptest::prelude::*;

    fn decode(tag: u8, body: &[u8]) -> Result<Message, WireError> {
        let mut buffer = BytesMut::new();
        buffer.extend_from_slice(&[tag]);
        buffer.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
        buffer.extend_from_slice(body);
        let Taken::Frame(frame) = take_frame(&mut buffer, 1 << 20).unwrap() else { panic!("a whole frame") };
        Message::decode(frame)
    }

    #[test]
    fn reads_errors_field_by_field_in_any_language() {
        let body = b"SFEHLER\0VERROR\0C55006\0Mslot is active\0Dby PID 7\0Hstop it\0Fslot.c\0\0";
        let Message::Error(error) = decode(b'E', body).unwrap() else { panic!("an error") };
        assert_eq!(error.to_string(), "ERROR 55006: slot is active (by PID 7)");
        assert_eq!(error.hint.as_deref(), Some("stop it"));
        let Message::Error(error) = decode(b'E', b"SFATAL\0Mold \xff server\0\0").unwrap() else {
            panic!("an error")
        };
        assert_eq!((error.severity.as_str(), error.message.as_str()), ("FATAL", "old \u{fffd} server"));
    }

    #[test]
    fn reads_rows() {
        let Message::RowDescription(columns) =
            decode(b'T', b"\0\x01id\0\0\0\0\0\0\0\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0").unwrap()
        else {
            panic!("a row description")
        };
        let Message::DataRow(values) = decode(b'D', b"\0\x01\0\0\0\x0212").unwrap() else { panic!("a row") };
        let mut rows = RowGatherer::default();
        assert!(rows.push(values.clone()).is_err());
        rows.describe(columns);
        rows.push(values).unwrap();
        let Message::DataRow(null) = decode(b'D', b"\0\x01\xff\xff\xff\xff").unwrap() else {
            panic!("a row")
        };
        rows.push(null).unwrap();
        let rows = rows.take();
        assert_eq!((rows[0].by_name("id"), rows[1].get(0)), (Some("12"), None));
    }

    #[test]
    fn names_sasl_mechanisms() {
        let decoded = decode(b'R', b"\0\0\0\x0aSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0").unwrap();
        let Message::Authentication(Authentication::Sasl { mechanisms }) = decoded else { panic!("SASL") };
        assert_eq!(mechanisms, ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"]);
    }

    #[test]
    fn knows_copy_both() {
        assert!(matches!(decode(b'W', b"\0\0\0"), Ok(Message::CopyBoth)));
    }

    proptest! {
        #[test]
        fn hostile_bodies_are_errors_not_panics(tag in any::<u8>(), body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(tag, &body);
        }

        #[test]
        fn hostile_bodies_of_known_types(tag in prop::sample::select(b"RKZTDCEGHISNtAcd123ns".to_vec()), body in prop::collection::vec(0u8..4, 0..60)) {
            let _ = decode(tag, &body);
        }
    }
}
