//! Clients of the three clouds, from a URL and options.

use super::profile::{Section, aws_default, check_private, read, read_private};
use crate::store::options::{Cloud, Credentials, RemoteUrl};
use crate::store::{StoreError, StoreOptions};
use object_store::aws::{AmazonS3Builder, S3ConditionalPut};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GcpCredential, GoogleCloudStorageBuilder};
use object_store::{Certificate, ClientOptions, ObjectStore, RetryConfig, StaticCredentialProvider};
use std::sync::Arc;
use std::time::Duration;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Idle connections are dropped before servers tend to do it, which would make the next create's outcome unknown.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
const IDLE_CONNECTIONS_MAX: usize = 16;

/// A client that repeats requests as `retry` says.
pub(super) fn build(
    url: &RemoteUrl,
    options: &StoreOptions,
    retry: RetryConfig,
) -> Result<Arc<dyn ObjectStore>, StoreError> {
    let refuse = |reason: String| StoreError::Url { url: url.to_string(), reason };
    let plain = options.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://"));
    if plain && !options.allow_http {
        return Err(refuse(
            "the endpoint is http://, without TLS; say allow_http=true if that is meant".into(),
        ));
    }
    let client = client_options(options).map_err(refuse)?;
    let built = match url.cloud {
        Cloud::S3 => s3(url, options, client, retry),
        Cloud::Google => google(url, options, client, retry),
        Cloud::Azure => azure(url, options, client, retry),
    };
    built.map_err(refuse)
}

fn client_options(options: &StoreOptions) -> Result<ClientOptions, String> {
    let mut client = ClientOptions::new()
        .with_timeout(options.request_timeout)
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_pool_idle_timeout(IDLE_TIMEOUT)
        .with_pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
        .with_allow_http(options.allow_http);
    if let Some(path) = &options.ca_file {
        let failed = |error: &dyn std::fmt::Display| format!("ca_file {}: {error}", path.display());
        let pem = std::fs::read(path).map_err(|error| failed(&error))?;
        for certificate in Certificate::from_pem_bundle(&pem).map_err(|error| failed(&error))? {
            client = client.with_root_certificate(certificate);
        }
    }
    Ok(client)
}

fn s3(
    url: &RemoteUrl,
    options: &StoreOptions,
    client: ClientOptions,
    retry: RetryConfig,
) -> Result<Arc<dyn ObjectStore>, String> {
    let environment = AmazonS3Builder::from_env();
    let mut builder = match &options.credentials {
        Credentials::Environment => aws_environment(environment)?,
        Credentials::Anonymous => environment.with_skip_signature(true),
        Credentials::AccessKey { id, secret, session_token } => {
            let builder = environment.with_access_key_id(id).with_secret_access_key(secret.as_str());
            session_token.iter().fold(builder, |builder, token| builder.with_token(token.as_str()))
        }
        Credentials::File { path, profile } => {
            let section = read_private(path, profile.as_deref().unwrap_or("default"))?;
            aws_section(environment, &section).ok_or_else(|| {
                format!("{} lacks aws_access_key_id or aws_secret_access_key", path.display())
            })?
        }
    };
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    if let Some(region) = &options.region {
        builder = builder.with_region(region);
    }
    if let Some(path_style) = options.path_style {
        builder = builder.with_virtual_hosted_style_request(!path_style);
    }
    let built = builder
        .with_bucket_name(&url.bucket)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        // One DELETE an object: every server has it, and none forgets to say what failed.
        .with_disable_bulk_delete(true)
        .with_client_options(client)
        .with_retry(retry)
        .build();
    Ok(Arc::new(built.map_err(|error| error.to_string())?))
}

/// What the environment says, or the file that AWS's tools read when it says nothing.
fn aws_environment(builder: AmazonS3Builder) -> Result<AmazonS3Builder, String> {
    let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let said = ["AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"];
    let more = ["AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_SKIP_SIGNATURE"];
    if said.iter().chain(&more).any(|name| env(name).is_some()) {
        return Ok(builder);
    }
    let Some((path, profile)) = aws_default(&env) else { return Ok(builder) };
    match read(&path, &profile)? {
        Some(section) => aws_section(builder, &section).ok_or_else(|| {
            format!(
                "section [{profile}] of {} lacks aws_access_key_id or aws_secret_access_key",
                path.display()
            )
        }),
        None if env("AWS_PROFILE").is_some() => Err(format!("{} has no section [{profile}]", path.display())),
        None => Ok(builder),
    }
}

fn aws_section(builder: AmazonS3Builder, section: &Section) -> Option<AmazonS3Builder> {
    let (id, secret) = (section.get("aws_access_key_id")?, section.get("aws_secret_access_key")?);
    let mut builder = builder.with_access_key_id(id.as_str()).with_secret_access_key(secret.as_str());
    if let Some(token) = section.get("aws_session_token") {
        builder = builder.with_token(token.as_str());
    }
    if let Some(region) = section.get("region") {
        builder = builder.with_region(region.as_str());
    }
    Some(builder)
}

fn google(
    url: &RemoteUrl,
    options: &StoreOptions,
    client: ClientOptions,
    retry: RetryConfig,
) -> Result<Arc<dyn ObjectStore>, String> {
    let environment = GoogleCloudStorageBuilder::from_env();
    let mut builder = match &options.credentials {
        Credentials::Environment => environment,
        // `object_store` 0.14.2 asks for a token before every PUT all the same: an empty one is at hand.
        Credentials::Anonymous => {
            let nobody = StaticCredentialProvider::new(GcpCredential { bearer: String::new() });
            environment.with_skip_signature(true).with_credentials(Arc::new(nobody))
        }
        Credentials::AccessKey { .. } => {
            return Err(
                "gs:// takes no access key; give the JSON of a service account as credentials_file".into()
            );
        }
        Credentials::File { path, .. } => {
            check_private(path)?;
            environment.with_service_account_path(path.to_string_lossy())
        }
    };
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_base_url(endpoint);
    }
    let built = builder.with_bucket_name(&url.bucket).with_client_options(client).with_retry(retry).build();
    Ok(Arc::new(built.map_err(|error| error.to_string())?))
}

fn azure(
    url: &RemoteUrl,
    options: &StoreOptions,
    client: ClientOptions,
    retry: RetryConfig,
) -> Result<Arc<dyn ObjectStore>, String> {
    let environment = MicrosoftAzureBuilder::from_env();
    let mut builder = match &options.credentials {
        Credentials::Environment => environment,
        Credentials::Anonymous => environment.with_skip_signature(true),
        Credentials::AccessKey { id, secret, .. } => {
            environment.with_account(id).with_access_key(secret.as_str())
        }
        Credentials::File { path, profile } => {
            let section = read_private(path, profile.as_deref().unwrap_or("default"))?;
            let lacks = || format!("{} lacks account, or one of key and sas", path.display());
            let builder = environment.with_account(section.get("account").ok_or_else(lacks)?.as_str());
            match (section.get("key"), section.get("sas")) {
                (Some(key), _) => builder.with_access_key(key.as_str()),
                (None, Some(sas)) => builder.with_config(AzureConfigKey::SasKey, sas.as_str()),
                (None, None) => return Err(lacks()),
            }
        }
    };
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_endpoint(endpoint.clone());
    }
    let built =
        builder.with_container_name(&url.bucket).with_client_options(client).with_retry(retry).build();
    Ok(Arc::new(built.map_err(|error| error.to_string())?))
}
