//! The keywords of a connection string (libpq's `PQconninfoOptions`), and what walden does with each.

/// What becomes of a keyword.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// It takes effect.
    Effective,
    /// It has no meaning for walden and nothing rests on it.
    Ignored,
    /// Ignoring it would weaken what was asked for: only these values, which ask for nothing, are let through.
    Refused(&'static [&'static str]),
}

/// A keyword of a connection string.
#[derive(Debug)]
pub(super) struct Keyword {
    pub(super) name: &'static str,
    pub(super) env: Option<&'static str>,
    pub(super) how: Use,
}

const fn keyword(name: &'static str, env: &'static str, how: Use) -> Keyword {
    Keyword { name, env: if env.is_empty() { None } else { Some(env) }, how }
}

use Use::{Effective, Ignored, Refused};

/// All of them, 14 to 18.
pub(super) const KEYWORDS: &[Keyword] = &[
    keyword("service", "PGSERVICE", Effective),
    keyword("servicefile", "PGSERVICEFILE", Effective),
    keyword("host", "PGHOST", Effective),
    keyword("hostaddr", "PGHOSTADDR", Effective),
    keyword("port", "PGPORT", Effective),
    keyword("dbname", "PGDATABASE", Effective),
    keyword("user", "PGUSER", Effective),
    keyword("password", "PGPASSWORD", Effective),
    keyword("passfile", "PGPASSFILE", Effective),
    keyword("require_auth", "PGREQUIREAUTH", Effective),
    keyword("channel_binding", "PGCHANNELBINDING", Effective),
    keyword("connect_timeout", "PGCONNECT_TIMEOUT", Effective),
    keyword("client_encoding", "PGCLIENTENCODING", Ignored),
    keyword("options", "PGOPTIONS", Effective),
    keyword("application_name", "PGAPPNAME", Effective),
    keyword("fallback_application_name", "", Effective),
    keyword("keepalives", "", Effective),
    keyword("keepalives_idle", "", Effective),
    keyword("keepalives_interval", "", Effective),
    keyword("keepalives_count", "", Effective),
    keyword("tcp_user_timeout", "", Effective),
    keyword("replication", "", Ignored),
    keyword("sslmode", "PGSSLMODE", Effective),
    keyword("requiressl", "", Refused(&["0"])),
    keyword("sslnegotiation", "PGSSLNEGOTIATION", Effective),
    keyword("sslcompression", "PGSSLCOMPRESSION", Ignored),
    keyword("sslcert", "PGSSLCERT", Effective),
    keyword("sslkey", "PGSSLKEY", Effective),
    keyword("sslpassword", "", Refused(&[""])),
    keyword("sslcertmode", "PGSSLCERTMODE", Effective),
    keyword("sslrootcert", "PGSSLROOTCERT", Effective),
    keyword("sslcrl", "PGSSLCRL", Effective),
    keyword("sslcrldir", "PGSSLCRLDIR", Refused(&[""])),
    keyword("sslsni", "PGSSLSNI", Effective),
    keyword("sslkeylogfile", "", Refused(&[""])),
    keyword("requirepeer", "PGREQUIREPEER", Effective),
    keyword("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION", Effective),
    keyword("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION", Effective),
    keyword("gssencmode", "PGGSSENCMODE", Refused(&["disable", "prefer", ""])),
    keyword("krbsrvname", "PGKRBSRVNAME", Ignored),
    keyword("gsslib", "PGGSSLIB", Ignored),
    keyword("gssdelegation", "PGGSSDELEGATION", Ignored),
    keyword("target_session_attrs", "PGTARGETSESSIONATTRS", Effective),
    keyword("load_balance_hosts", "PGLOADBALANCEHOSTS", Refused(&["disable", ""])),
    keyword("min_protocol_version", "PGMINPROTOCOLVERSION", Refused(&["", "3.0"])),
    keyword("max_protocol_version", "PGMAXPROTOCOLVERSION", Ignored),
    keyword("scram_client_key", "", Refused(&[""])),
    keyword("scram_server_key", "", Refused(&[""])),
    keyword("oauth_issuer", "", Refused(&[""])),
    keyword("oauth_client_id", "", Refused(&[""])),
    keyword("oauth_client_secret", "", Refused(&[""])),
    keyword("oauth_scope", "", Refused(&[""])),
];

/// The keyword called `name`.
pub(super) fn find(name: &str) -> Option<&'static Keyword> {
    KEYWORDS.iter().find(|keyword| keyword.name == name)
}

/// Keywords whose value is a secret, and so may not stand on a command line.
pub(super) const SECRETS: &[&str] =
    &["password", "sslpassword", "scram_client_key", "scram_server_key", "oauth_client_secret"];
