//! Who wins, and what is refused.

use super::super::config::parse;
use super::*;

fn file() -> ConfigFile {
    let text = r#"
        [repository.main]
        url = "/srv/main"
        key_file = "/etc/walden/key"
        [repository.far]
        url = "s3://far/walden"
        [cluster.shop]
        connection = "host=db1"
        repositories = ["main"]
        ack = "journal"
        [cluster.two]
        repositories = ["main", "far"]
        [cluster.lost]
        repositories = ["mian"]
    "#;
    parse(text, Path::new("walden.toml")).unwrap()
}

fn given(fill: impl Fn(&mut Given)) -> Given {
    let mut given = Given::default();
    fill(&mut given);
    given
}

fn cluster(name: &str) -> Given {
    given(|given| given.cluster = Some(name.into()))
}

#[test]
fn an_option_beats_the_environment_which_beats_the_file() {
    let flags = given(|given| given.connection = Some("host=flag".into()));
    let env = given(|given| {
        given.cluster = Some("shop".into());
        given.connection = Some("host=env".into());
        given.passphrase_file = Some("/env".into());
    });
    let settings = Settings::resolve(&flags, &env, &file()).unwrap();
    assert_eq!(settings.connection(), "host=flag");
    assert_eq!(settings.repository().unwrap().secret, Some(SecretSource::PassphraseFile("/env".into())));
    assert_eq!(settings.repository().unwrap().url, "/srv/main");

    let settings = Settings::resolve(&Given::default(), &env, &file()).unwrap();
    assert_eq!(settings.connection(), "host=env");
    let settings = Settings::resolve(&cluster("shop"), &Given::default(), &file()).unwrap();
    assert_eq!(settings.connection(), "host=db1");
    assert_eq!(settings.repository().unwrap().secret, Some(SecretSource::KeyFile("/etc/walden/key".into())));
    assert_eq!(settings.ack(None), Ack::Journal);
    assert_eq!(settings.ack(Some(Ack::Object)), Ack::Object);
}

#[test]
fn defaults_follow_the_clusters_name() {
    let flags = given(|given| {
        given.repo = Some("/srv/r".into());
        given.cluster = Some("shop-eu".into());
    });
    let settings = Settings::resolve(&flags, &Given::default(), &ConfigFile::default()).unwrap();
    let name = settings.require_cluster().unwrap();
    assert_eq!(settings.slot(None, name), "walden_shop_eu");
    assert_eq!(settings.journal_dir(None, name), Path::new("/var/lib/walden/shop-eu"));
    assert_eq!(settings.ack(None), Ack::Object);
    assert_eq!(settings.connection(), "");
}

#[test]
fn the_only_table_needs_no_name() {
    let text = "[repository.main]\nurl = \"/srv/main\"\n[cluster.shop]\n";
    let file = parse(text, Path::new("walden.toml")).unwrap();
    let settings = Settings::resolve(&Given::default(), &Given::default(), &file).unwrap();
    assert_eq!(settings.require_cluster().unwrap().as_str(), "shop");
    assert_eq!(settings.repository().unwrap().url, "/srv/main");
}

#[test]
fn what_is_missing_is_said_with_how_to_give_it() {
    let none = Settings::resolve(&Given::default(), &Given::default(), &ConfigFile::default()).unwrap();
    assert!(none.repository().unwrap_err().to_string().contains("--repo"));
    assert!(none.require_cluster().unwrap_err().to_string().contains("--cluster"));
    for name in ["two", "lost"] {
        assert!(matches!(
            Settings::resolve(&cluster(name), &Given::default(), &file()),
            Err(ConfigError::Missing { .. })
        ));
    }
}

#[test]
fn a_mistyped_repository_name_becomes_no_directory() {
    let named = |repo: &str| {
        let flags = given(|given| given.repo = Some(repo.into()));
        let settings = Settings::resolve(&flags, &Given::default(), &file())?;
        settings.repository().map(|repository| repository.url.clone())
    };
    assert_eq!(named("far").unwrap(), "s3://far/walden");
    assert_eq!(named("./mian").unwrap(), "./mian");
    let error = named("mian").unwrap_err().to_string();
    assert!(error.ends_with("did you mean main?"), "{error}");
}

#[test]
fn two_secrets_at_one_level_are_refused() {
    let flags = given(|given| {
        given.repo = Some("/srv/r".into());
        given.key_file = Some("/k".into());
        given.passphrase_file = Some("/p".into());
    });
    let error = Settings::resolve(&flags, &Given::default(), &ConfigFile::default()).unwrap_err();
    assert!(error.to_string().contains("both --passphrase-file and --key-file"), "{error}");
}

#[test]
fn a_password_in_an_option_is_refused_unseen() {
    let flags = given(|given| given.connection = Some("host=a password=hunter2".into()));
    let error = Settings::resolve(&flags, &Given::default(), &ConfigFile::default()).unwrap_err();
    assert!(error.to_string().starts_with("--connection: ") && !error.to_string().contains("hunter2"));
}
