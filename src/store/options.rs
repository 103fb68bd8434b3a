//! What a store is: its URL, and what a URL may not or need not say. Secrets never stand in a URL; everything else may, since
//! a restored server's `restore_command` knows the repository by its URL alone.

use super::StoreError;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;
use zeroize::Zeroizing;

/// How long one request may take before its outcome counts as unknown. 32 MiB at 4 Mbit/s.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(90);

/// What a URL does not say. Whatever the URL does say comes first.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// The operator declares that one process at a time writes here, so that a store without conditional creation will do.
    pub single_writer: bool,
    /// The service's address, where it is not the cloud's own: `https://minio.example:9000`.
    pub endpoint: Option<String>,
    /// The region, for S3.
    pub region: Option<String>,
    /// Whether the bucket stands in the path, for S3; the default where there is an endpoint.
    pub path_style: Option<bool>,
    /// Allows an endpoint without TLS. Objects are sealed all the same; names and sizes are not.
    pub allow_http: bool,
    /// Certificates (PEM) to trust beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Who we are to the store.
    pub credentials: Credentials,
    /// How long one request may take before its outcome counts as unknown.
    pub request_timeout: Duration,
}

impl Default for StoreOptions {
    fn default() -> Self {
        StoreOptions {
            single_writer: false,
            endpoint: None,
            region: None,
            path_style: None,
            allow_http: false,
            ca_file: None,
            credentials: Credentials::Environment,
            request_timeout: REQUEST_TIMEOUT,
        }
    }
}

impl StoreOptions {
    /// The defaults, at a service's address and in a region where these are given.
    pub fn at(endpoint: Option<&str>, region: Option<&str>) -> Self {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        StoreOptions { endpoint: owned(endpoint), region: owned(region), ..StoreOptions::default() }
    }
}

/// Who we are to the store.
#[derive(Clone, Default)]
pub enum Credentials {
    /// As the cloud's own tools find it: environment variables, then files (`~/.aws/credentials`,
    /// `GOOGLE_APPLICATION_CREDENTIALS`), then the instance's own role.
    #[default]
    Environment,
    /// Nobody.
    Anonymous,
    /// A file that only its owner may read: AWS's `credentials` for `s3://`, a service account's JSON for `gs://`, and for `az://`
    /// the same form as AWS's with `account` and `key`, or `account` and `sas`.
    File {
        /// Where it is.
        path: PathBuf,
        /// The section of an AWS or Azure file; `default` by default.
        profile: Option<String>,
    },
    /// An access key: id and secret of S3, account and key of Azure.
    AccessKey {
        /// The key's id, or the account.
        id: String,
        /// The secret.
        secret: Zeroizing<String>,
        /// S3: the token of a temporary key.
        session_token: Option<Zeroizing<String>>,
    },
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Credentials::Environment => f.write_str("Environment"),
            Credentials::Anonymous => f.write_str("Anonymous"),
            Credentials::File { path, profile } => {
                f.debug_struct("File").field("path", path).field("profile", profile).finish()
            }
            Credentials::AccessKey { id, .. } => {
                f.debug_struct("AccessKey").field("id", id).finish_non_exhaustive()
            }
        }
    }
}

/// The kinds of remote stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cloud {
    S3,
    Google,
    Azure,
}

impl Cloud {
    fn scheme(self) -> &'static str {
        match self {
            Cloud::S3 => "s3",
            Cloud::Google => "gs",
            Cloud::Azure => "az",
        }
    }
}

/// A remote store's URL, taken apart: `s3://bucket/prefix?endpoint=https://host`.
#[derive(Debug, Clone)]
pub(super) struct RemoteUrl {
    pub(super) cloud: Cloud,
    pub(super) bucket: String,
    /// Without slashes at its ends; may be empty.
    pub(super) prefix: String,
    /// What the URL said of the options, as written.
    query: Option<String>,
}

impl RemoteUrl {
    /// Reads `url` and puts what it says into `options`. Refuses what it does not understand, and secrets.
    pub(super) fn parse(cloud: Cloud, url: &str, options: &mut StoreOptions) -> Result<Self, StoreError> {
        let (scheme, rest) = url.split_once("://").unwrap_or_default();
        // What may hold a secret is not repeated in the error about it.
        let bare = match url.split_once('?').map_or(url, |(bare, _)| bare) {
            bare if bare.contains('@') => format!("{scheme}://…"),
            bare => bare.to_owned(),
        };
        let refuse = |reason: String| StoreError::Url { url: bare.clone(), reason };
        let (place, query) = rest.split_once('?').map_or((rest, None), |(place, query)| (place, Some(query)));
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        if bucket.contains('@') {
            let form = "credentials do not belong into a URL; use the environment or credentials_file";
            return Err(refuse(form.into()));
        }
        let sane = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if bucket.is_empty() || !bucket.bytes().all(sane) {
            return Err(refuse("names no bucket or container".into()));
        }
        let prefix = prefix.trim_matches('/');
        let part_sane =
            |part: &str| !part.is_empty() && part.bytes().all(sane) && !matches!(part, "." | "..");
        if !prefix.is_empty() && !prefix.split('/').all(part_sane) {
            return Err(refuse(format!(
                "{prefix:?} is no prefix: parts of letters, digits, '-', '_' and '.' only"
            )));
        }
        for pair in query.into_iter().flat_map(|query| query.split('&')) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = unescape(value).and_then(|value| String::from_utf8(value).ok());
            let value = value.ok_or_else(|| refuse(format!("the value of {name} is not text")))?;
            options.set(name, value).map_err(refuse)?;
        }
        let (bucket, prefix) = (bucket.to_owned(), prefix.to_owned());
        Ok(RemoteUrl { cloud, bucket, prefix, query: query.map(str::to_owned) })
    }
}

impl fmt::Display for RemoteUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.cloud.scheme(), self.bucket)?;
        if !self.prefix.is_empty() {
            write!(f, "/{}", self.prefix)?;
        }
        self.query.as_ref().map_or(Ok(()), |query| write!(f, "?{query}"))
    }
}

impl StoreOptions {
    fn set(&mut self, name: &str, value: String) -> Result<(), String> {
        let truth = |value: &str| match value {
            "" | "true" | "yes" | "1" => Ok(true),
            "false" | "no" | "0" => Ok(false),
            other => Err(format!("{name}={other} is neither true nor false")),
        };
        match name {
            "endpoint" => self.endpoint = Some(value),
            "region" => self.region = Some(value),
            "path_style" => self.path_style = Some(truth(&value)?),
            "allow_http" => self.allow_http = truth(&value)?,
            "ca_file" => self.ca_file = Some(value.into()),
            "anonymous" if truth(&value)? => self.credentials = Credentials::Anonymous,
            "anonymous" => {}
            "single_writer" => self.single_writer = truth(&value)?,
            "credentials_file" => {
                let profile = match &self.credentials {
                    Credentials::File { profile, .. } => profile.clone(),
                    _ => None,
                };
                self.credentials = Credentials::File { path: value.into(), profile };
            }
            "profile" => match &mut self.credentials {
                Credentials::File { profile, .. } => *profile = Some(value),
                _ => return Err("profile= goes after credentials_file=".into()),
            },
            other => {
                return Err(format!(
                    "{other:?} is no option; expected endpoint, region, path_style, allow_http, ca_file, anonymous, \
                     credentials_file, profile or single_writer"
                ));
            }
        }
        Ok(())
    }
}

/// Undoes `%20`; `None` where the digits are missing, or say 0.
pub(super) fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|b| (b as char).to_digit(16));
        match digit()? << 4 | digit()? {
            0 => return None,
            byte => bytes.push(byte as u8),
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<(RemoteUrl, StoreOptions), StoreError> {
        let mut options = StoreOptions::default();
        RemoteUrl::parse(Cloud::S3, url, &mut options).map(|parsed| (parsed, options))
    }

    #[test]
    fn a_url_says_all_but_secrets() {
        let url =
            "s3://bucket/a/b?endpoint=http://127.0.0.1:9000&allow_http=true&region=eu-1&path_style=false";
        let (parsed, options) = parse(url).unwrap();
        assert_eq!((parsed.bucket.as_str(), parsed.prefix.as_str()), ("bucket", "a/b"));
        assert_eq!(options.endpoint.as_deref(), Some("http://127.0.0.1:9000"));
        assert_eq!(options.region.as_deref(), Some("eu-1"));
        assert!(options.allow_http && options.path_style == Some(false));
        assert_eq!(parsed.to_string(), url);
        let (parsed, options) = parse("s3://b//x/?credentials_file=/etc/a%20b&profile=p").unwrap();
        assert_eq!(parsed.prefix, "x");
        let Credentials::File { path, profile } = options.credentials else { panic!() };
        assert_eq!((path, profile.as_deref()), (PathBuf::from("/etc/a b"), Some("p")));
    }

    #[test]
    fn refuses_what_it_does_not_understand() {
        for bad in
            ["s3://", "s3:///x", "s3://a b", "s3://b/x//y", "s3://b/../x", "s3://b/x y", "s3://b?secret=x"]
        {
            assert!(matches!(parse(bad), Err(StoreError::Url { .. })), "{bad}");
        }
        assert!(parse("s3://b?allow_http=maybe").is_err() && parse("s3://b?endpoint=%zz").is_err());
    }

    #[test]
    fn a_secret_is_not_repeated() {
        for url in ["s3://id:hunter2@bucket/x", "s3://bucket/x?secret_access_key=hunter2"] {
            let error = parse(url).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
        let (id, secret) = ("id".to_owned(), Zeroizing::new("hunter2".to_owned()));
        let credentials = Credentials::AccessKey { id, secret, session_token: None };
        let options = StoreOptions { credentials, ..StoreOptions::default() };
        assert!(!format!("{options:?}").contains("hunter2"));
    }
}
