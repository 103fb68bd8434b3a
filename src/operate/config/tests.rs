//! Files as operators write them, and their mistakes.

use super::*;

fn read(text: &str) -> Result<ConfigFile, String> {
    parse(text, Path::new("walden.toml")).map_err(|error| error.to_string())
}

#[test]
fn reads_every_key() {
    let config = read(
        r#"
        [repository.main]
        url = "s3://backups/walden"
        passphrase_file = "/etc/walden/passphrase"
        endpoint = "https://s3.example.org"
        region = "eu-1"
        single_writer = true

        [cluster.shop]
        connection = "host=db1 user=walden"
        repositories = ["main"]
        ack = "journal"
        journal_dir = "/fast/walden"
        journal_size = "10GB"
        slot = "archive"
        flush_interval = "500ms"
        shutdown_grace = "5s"
        wal_deltas = "off"
        delta_cache = "2GB"
        cache_dir = "/srv/cache"

        [cluster.shop.retention]
        window = "14d"
        min_backups = 3
        keep_daily = 7
        keep_monthly = 12
        "#,
    )
    .unwrap();
    let main = RepositoryTable {
        url: "s3://backups/walden".into(),
        secret: Some(SecretSource::PassphraseFile("/etc/walden/passphrase".into())),
        endpoint: Some("https://s3.example.org".into()),
        region: Some("eu-1".into()),
        single_writer: true,
    };
    let shop = ClusterTable {
        connection: Some("host=db1 user=walden".into()),
        repositories: vec!["main".into()],
        ack: Some(Ack::Journal),
        journal_dir: Some("/fast/walden".into()),
        journal_bytes_max: Some(10 << 30),
        slot: Some("archive".into()),
        flush_interval: Some(Duration::from_millis(500)),
        shutdown_grace: Some(Duration::from_secs(5)),
        wal_deltas: Some(Switch::Off),
        delta_cache_bytes: Some(2 << 30),
        cache_dir: Some("/srv/cache".into()),
        retention: Some(Retention {
            window: Some(Duration::from_secs(14 * 86_400)),
            count_min: Some(3),
            keeps: [Some(7), None, Some(12), None],
        }),
    };
    assert_eq!(config.repositories, BTreeMap::from([("main".to_owned(), main)]));
    assert_eq!(config.clusters, BTreeMap::from([("shop".parse().unwrap(), shop)]));
    assert_eq!(read("").unwrap(), ConfigFile::default());
}

#[test]
fn unknown_keys_are_refused_with_the_nearest_known_one() {
    for (text, expected) in [
        (
            "[repository.main]\nurl = \"/a\"\npassphrase_fiel = \"/p\"",
            "walden.toml line 3: unknown key repository.main.passphrase_fiel, did you mean passphrase_file?",
        ),
        ("[clusters.shop]\n", "walden.toml line 1: unknown key clusters, did you mean cluster?"),
        (
            "[cluster.shop]\n\njournaldir = \"/j\"",
            "walden.toml line 3: unknown key cluster.shop.journaldir, did you mean journal_dir?",
        ),
        ("[cluster.shop]\nzzz = 1", "walden.toml line 2: unknown key cluster.shop.zzz"),
    ] {
        assert_eq!(read(text).unwrap_err(), expected);
    }
}

#[test]
fn every_key_has_a_reader() {
    for key in REPOSITORY_KEYS {
        let wrong = read(&format!(
            "[repository.r]\n{key} = 1979-05-27\n{}",
            if *key == "url" { "" } else { "url = \"/r\"" }
        ));
        assert!(wrong.unwrap_err().contains(key), "{key} is not read");
    }
    for key in CLUSTER_KEYS {
        let wrong = read(&format!("[cluster.c]\n{key} = 1979-05-27"));
        assert!(wrong.unwrap_err().contains(key), "{key} is not read");
    }
}

#[test]
fn values_of_the_wrong_kind_are_refused_where_they_stand() {
    for (text, expected) in [
        (
            "[cluster.c]\nack = \"async\"",
            "walden.toml line 2: cluster.c.ack is \"async\", expected \"object\" or \"journal\"",
        ),
        (
            "[cluster.c]\nrepositories = [1]",
            "walden.toml line 2: cluster.c.repositories is [1], expected a list of names",
        ),
        (
            "[cluster.c]\nflush_interval = 5",
            "walden.toml line 2: cluster.c.flush_interval is 5, expected a duration such as \"500ms\" or \"1s\"",
        ),
        (
            "[cluster.c]\njournal_dir = \"j\"",
            "walden.toml line 2: cluster.c.journal_dir is \"j\", expected an absolute path",
        ),
        ("[repository.r]\nregion = \"x\"", "walden.toml line 1: repository.r.url is missing"),
        ("cluster = 3", "walden.toml line 1: cluster is 3, expected a table of settings"),
        (
            "[cluster.Shop]",
            "walden.toml line 1: \"Shop\" is not a cluster name: expected 1 to 48 of a-z, 0-9, _ and -, beginning with a letter or digit",
        ),
    ] {
        assert_eq!(read(text).unwrap_err(), expected);
    }
    assert!(read("[cluster.c\nack = 1").unwrap_err().starts_with("walden.toml line 1: "));
}

#[test]
fn secrets_are_refused_unseen() {
    for text in [
        "[repository.r]\nurl = \"/r\"\npassphrase = \"hunter2\"",
        "[repository.r]\nurl = \"s3://b\"\nsecret_access_key = \"hunter2\"",
        "[cluster.c]\npassword = \"hunter2\"",
        "[cluster.c]\nconnection = \"host=a password=hunter2\"",
        "[cluster.c]\nconnection = \"postgresql://u:hunter2@a/b\"",
    ] {
        let error = parse(text, Path::new("walden.toml")).unwrap_err();
        assert!(matches!(error, ConfigError::Secret { .. }), "{text:?}");
        assert!(!error.to_string().contains("hunter2"));
    }
}

#[test]
fn a_secret_has_one_source() {
    let two =
        read("[repository.r]\nurl = \"/r\"\nkey_file = \"/k\"\npassphrase_command = \"p\"").unwrap_err();
    assert_eq!(
        two,
        "walden.toml line 1: both passphrase_command and key_file are given, expected one source of the secret"
    );
}

#[test]
fn a_missing_file_is_an_error_only_when_it_was_named() {
    assert!(matches!(load(Some(Path::new("/nonexistent/walden.toml"))), Err(ConfigError::Unreadable { .. })));
}

#[test]
fn the_example_is_understood() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/walden.toml");
    let example = std::fs::read_to_string(&path).unwrap();
    let config = parse(&example, &path).unwrap();
    assert!(config.repositories.contains_key("main") && config.clusters.len() == 1);
    // What is commented out would be understood too, one key at a time.
    for line in example.lines().filter_map(|line| line.strip_prefix("# ")) {
        let Some((key, value)) = line.split_once(" = ") else { continue };
        let value = value.split('#').next().unwrap().trim();
        let table = match key {
            key if REPOSITORY_KEYS.contains(&key) => "repository.r",
            key if retention::KEYS.contains(&key) => "cluster.c.retention",
            _ => "cluster.c",
        };
        let url = if table.starts_with("rep") { "url = \"/r\"\n" } else { "" };
        let read = read(&format!("[{table}]\n{url}{key} = {value}"));
        assert!(read.is_ok(), "{line}: {read:?}");
    }
}

#[test]
fn a_retention_that_could_mean_something_else_is_refused() {
    for (line, what) in [
        ("window = 30", "window is 30, expected a duration such as"),
        ("window = \"30\"", "expected a duration"),
        ("window = \"1 month\"", "expected a duration"),
        ("min_backups = 0", "min_backups is 0, expected a number, 1 at least"),
        ("keep_daily = -1", "keep_daily is -1, expected a number"),
        ("keep_dayly = 1", "did you mean keep_daily?"),
    ] {
        let error = read(&format!("[cluster.shop.retention]\n{line}")).unwrap_err();
        assert!(error.contains(what), "{line}: {error}");
    }
    let empty = read("[cluster.shop.retention]").unwrap();
    let table = empty.clusters.values().next().unwrap().retention.unwrap();
    assert_eq!(table.policy(), crate::retain::policy::Policy::default());
    assert_eq!(read("[cluster.shop]").unwrap().clusters.values().next().unwrap().retention, None);
}
