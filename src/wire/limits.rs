//! How long a message may be, by phase. The server is not trusted with our memory.

/// Before authentication is complete: authentication requests, errors, parameters.
pub const STARTUP_MESSAGE_BYTES_MAX: usize = 64 << 10;
/// One row, error or parameter of an ordinary command.
pub const SQL_MESSAGE_BYTES_MAX: usize = 256 << 20;
/// One CopyData: a walsender sends up to 16 WAL pages, BASE_BACKUP 32 KiB, COPY one row.
pub const COPY_MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Rows kept of one command's answer.
pub const ROWS_MAX: usize = 1 << 20;
