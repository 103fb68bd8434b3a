//! Servers that lie, stop in the middle, or talk nonsense.

use super::fake::{Fake, identity, message, wal, welcome};
use super::logins::attempt;
use std::sync::mpsc;
use std::time::Duration;
use tokio::time::timeout;
use walden::base::{Lsn, TimelineId, Timestamp};
use walden::net::{
    BaseBackupOptions, Connection, ConnectionKind, NextTimeline, PgError, ReplicationEvent,
    ReplicationReader, ReplicationStream, ReplicationWriter, StartReplication, StatusUpdate,
};

const LIMIT: Duration = Duration::from_secs(20);

async fn stream(fake: &Fake) -> Result<(ReplicationReader, ReplicationWriter), PgError> {
    let connection = attempt(&fake.conninfo(), ConnectionKind::PhysicalReplication).await?;
    match connection.start_physical(Some("s"), Lsn::new(0), TimelineId(1)).await? {
        StartReplication::Streaming(stream) => Ok(stream.split()),
        StartReplication::EndOfTimeline(_, next) => panic!("{next:?}"),
    }
}

/// Lets a client in by `answers`: each is said, then a message is awaited.
fn scripted(answers: Vec<Vec<u8>>) -> Fake {
    Fake::start(move |mut client| {
        client.startup();
        for answer in &answers {
            if !client.say(answer) || client.hear().is_none() {
                return;
            }
        }
    })
}

async fn refused(answers: Vec<Vec<u8>>) -> PgError {
    let fake = scripted(answers);
    let result =
        timeout(LIMIT, attempt(&fake.conninfo(), ConnectionKind::Sql)).await.expect("an answer in time");
    result.map(drop).expect_err("refused")
}

#[tokio::test]
async fn a_server_that_does_not_know_the_password_is_not_believed() {
    let sasl = message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0");
    let skips = refused(vec![sasl.clone(), welcome()]).await;
    assert!(matches!(&skips, PgError::Auth { reason, .. } if reason.contains("skipped")), "{skips}");
    let out_of_turn = refused(vec![message(b'R', b"\0\0\0\x0cv=AAAA")]).await;
    assert!(
        matches!(&out_of_turn, PgError::Auth { reason, .. } if reason.contains("not begun")),
        "{out_of_turn}"
    );
    let other_nonce = refused(vec![sasl.clone(), message(b'R', b"\0\0\0\x0br=abc,s=AAAA,i=4096")]).await;
    assert!(
        matches!(&other_nonce, PgError::Auth { reason, .. } if reason.contains("nonce")),
        "{other_nonce}"
    );
    let unknown = refused(vec![message(b'R', b"\0\0\0\x0aSCRAM-SHA-512\0\0")]).await;
    assert!(matches!(unknown, PgError::Auth { .. }), "{unknown}");
    let twice = refused(vec![message(b'R', b"\0\0\0\x05salt"), message(b'R', b"\0\0\0\x03")]).await;
    assert!(matches!(&twice, PgError::Auth { reason, .. } if reason.contains("second time")), "{twice}");
    let gss = refused(vec![message(b'R', b"\0\0\0\x07")]).await;
    assert!(matches!(&gss, PgError::Auth { reason, .. } if reason.contains("GSSAPI")), "{gss}");
}

#[tokio::test]
async fn a_server_that_makes_the_client_count_for_ever_is_refused() {
    // The client's nonce has to be repeated for the count to be looked at.
    let fake = Fake::start(|mut client| {
        client.startup();
        client.say(&message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0"));
        let Some((b'p', body)) = client.hear() else { return };
        let text = String::from_utf8_lossy(&body).into_owned();
        let nonce = text.rsplit("r=").next().unwrap().to_owned();
        client.say(&message(b'R', format!("\0\0\0\x0br={nonce}x,s=AAAA,i=4000000000").as_bytes()));
        client.hear();
    });
    let result =
        timeout(LIMIT, attempt(&fake.conninfo(), ConnectionKind::Sql)).await.expect("an answer in time");
    assert!(matches!(result.map(drop), Err(PgError::Auth { .. })));
}

#[tokio::test]
async fn old_servers_and_other_products_are_named() {
    for (version, kind) in [("13.22", "walden needs 14"), ("PgBouncer", "not a version")] {
        let parameter = message(b'S', format!("server_version\0{version}\0").as_bytes());
        let error = refused(vec![[message(b'R', &[0; 4]), parameter, message(b'Z', b"I")].concat()]).await;
        assert!(matches!(&error, PgError::Unsupported { reason, .. } if reason.contains(kind)), "{error}");
    }
}

#[tokio::test]
async fn a_huge_message_is_refused_before_it_comes() {
    for header in [b"R\x7f\xff\xff\xff", b"E\x00\x10\x00\x00", b"S\x00\x02\x00\x00"] {
        let error = refused(vec![header.to_vec()]).await;
        assert!(matches!(error, PgError::Protocol { .. }), "{error}");
    }
    let fake = Fake::start(|mut client| {
        if client.begin_streaming().is_some() {
            client.say(b"d\x7f\xff\xff\xff");
            client.hear();
        }
    });
    let (mut reader, _writer) = stream(&fake).await.unwrap();
    assert!(matches!(reader.next().await, Err(PgError::Protocol { .. })));
}

#[tokio::test]
async fn a_stream_cut_at_any_byte_gives_whole_messages_and_then_an_error() {
    let whole =
        [wal(0, b"abcdefgh"), message(b'd', &[&b"k"[..], &[0; 16], &[1]].concat()), wal(8, b"ijk")].concat();
    let length = whole.len();
    let cuts: Vec<usize> = (0..=length).collect();
    let mut next = cuts.clone().into_iter();
    let fake = Fake::start(move |mut client| {
        let Some(cut) = next.next() else { return };
        if client.begin_streaming().is_some() {
            client.say(&whole[..cut]);
        }
    });
    for cut in cuts {
        let (mut reader, _writer) = stream(&fake).await.unwrap();
        let mut events = Vec::new();
        let error = loop {
            match timeout(LIMIT, reader.next()).await.expect("the end in time") {
                Ok(event) => events.push(event),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, PgError::Closed { .. }) && error.is_transient(), "cut at {cut}: {error}");
        let expected = [38, 61, length].iter().filter(|end| cut >= **end).count();
        assert_eq!(events.len(), expected, "cut at {cut}: {events:?}");
        if let Some(ReplicationEvent::Wal { start, data, .. }) = events.first() {
            assert_eq!((*start, &data[..]), (Lsn::new(0), &b"abcdefgh"[..]));
        }
    }
}

#[tokio::test]
async fn nonsense_inside_a_stream_is_a_protocol_error() {
    let nonsense = [
        message(b'd', b""),
        message(b'd', b"x123"),
        message(b'd', b"w123"),
        message(b'Z', b"I"),
        message(b'T', b"\0\0"),
        message(b'G', b"\0\0\0"),
        message(b'!', b""),
        b"d\0\0\0\x03".to_vec(),
    ];
    for bytes in nonsense {
        let said = bytes.clone();
        let fake = Fake::start(move |mut client| {
            if client.begin_streaming().is_some() {
                client.say(&said);
                client.hear();
            }
        });
        let (mut reader, _writer) = stream(&fake).await.unwrap();
        let result = timeout(LIMIT, reader.next()).await.expect("an answer in time");
        assert!(matches!(result, Err(PgError::Protocol { .. })), "{bytes:?}: {result:?}");
    }
}

#[tokio::test]
async fn messages_of_any_time_pass_by_and_errors_come_through() {
    let fake = Fake::start(|mut client| {
        if client.begin_streaming().is_some() {
            client.say(&message(b'S', b"in_hot_standby\0off\0"));
            client.say(&message(b'N', b"VWARNING\0C01000\0Mmind the gap\0\0"));
            client.say(&wal(0, b"abc"));
            client.say(&message(b'E', b"VFATAL\0C57P01\0Mterminating connection\0\0"));
            client.hear();
        }
    });
    let (mut reader, _writer) = stream(&fake).await.unwrap();
    assert!(matches!(reader.next().await, Ok(ReplicationEvent::Wal { .. })));
    let error = reader.next().await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("57P01"));
    assert!(matches!(reader.next().await, Err(PgError::Closed { .. })));
}

#[tokio::test]
async fn the_end_of_a_timeline_survives_being_dropped_half_way() {
    let next_row = {
        let column = |name: &str| [name.as_bytes(), &[0; 19]].concat();
        let columns = [&[0, 2][..], &column("next_tli"), &column("next_tli_startpos")].concat();
        let row = b"\0\x02\0\0\0\x012\0\0\0\x050/3E8";
        [
            message(b'T', &columns),
            message(b'D', row),
            message(b'C', b"SELECT\0"),
            message(b'C', b"START_STREAMING\0"),
        ]
    };
    let (heard, hears) = mpsc::channel();
    let fake = Fake::start(move |mut client| {
        client.begin_streaming();
        client.say(&message(b'c', b""));
        loop {
            match client.hear() {
                Some((b'c', _)) => break,
                Some((tag, _)) => heard.send(tag).unwrap(),
                None => return,
            }
        }
        // WAL that was under way, then the row in pieces.
        client.say(&wal(0, b"late"));
        for piece in &next_row {
            std::thread::sleep(Duration::from_millis(20));
            client.say(piece);
        }
        client.say(&message(b'Z', b"I"));
        while let Some((tag, _)) = client.hear() {
            heard.send(tag).unwrap();
        }
    });
    let (mut reader, writer) = stream(&fake).await.unwrap();
    let event = loop {
        // Given up and asked again every few milliseconds.
        if let Ok(event) = timeout(Duration::from_millis(3), reader.next()).await {
            break event.unwrap();
        }
    };
    assert_eq!(
        event,
        ReplicationEvent::EndOfTimeline(NextTimeline { timeline: TimelineId(2), start: Lsn::new(0x3e8) })
    );
    let update = StatusUpdate {
        write: Lsn::ZERO,
        flush: Lsn::ZERO,
        apply: Lsn::ZERO,
        clock: Timestamp::from_micros(0),
        reply_requested: false,
    };
    writer.status(update).await.unwrap();
    let clone = writer.clone();
    let refused = ReplicationStream::unite(reader, writer);
    assert!(matches!(refused, Err(PgError::Closed { .. })), "a writer is still out");
    drop(clone);
    drop(refused);
    // CopyDone was said once, and no status after it.
    assert_eq!(hears.recv_timeout(Duration::from_millis(200)).ok(), None);
}

#[tokio::test]
async fn a_base_backup_must_be_whole() {
    let position = {
        let columns = [&[0, 2][..], b"recptr", &[0; 19], b"tli", &[0; 19]].concat();
        let row = message(b'D', b"\0\x02\0\0\0\x030/1\0\0\0\x011");
        [message(b'T', &columns), row, message(b'C', b"SELECT\0")].concat()
    };
    let tablespaces = {
        let columns =
            [&[0, 3][..], b"spcoid", &[0; 19], b"spclocation", &[0; 19], b"size", &[0; 19]].concat();
        let base = message(b'D', b"\0\x03\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff");
        [message(b'T', &columns), base, message(b'C', b"SELECT\0")].concat()
    };
    let copy = |messages: &[&[u8]]| {
        let data: Vec<u8> = messages.iter().flat_map(|body| message(b'd', body)).collect();
        [message(b'H', b"\0\0\0"), data, message(b'c', b"")].concat()
    };
    let end = [position.clone(), message(b'C', b"BASE_BACKUP\0"), message(b'Z', b"I")].concat();
    let begin = [position, tablespaces].concat();
    let outcome = async |copy: Vec<u8>| {
        let answer = [begin.clone(), copy, end.clone()].concat();
        let fake = scripted(vec![welcome(), answer]);
        let connection = attempt(&fake.conninfo(), ConnectionKind::PhysicalReplication).await.unwrap();
        let mut stream = connection.base_backup(&BaseBackupOptions::new("x")).await.unwrap();
        let mut events = 0;
        loop {
            match timeout(LIMIT, stream.next()).await.expect("the end in time") {
                Ok(Some(_)) => events += 1,
                Ok(None) => return stream.into_connection().map(|_| events),
                Err(error) => {
                    assert!(stream.next().await.is_err());
                    return Err(error);
                }
            }
        }
    };
    assert_eq!(
        outcome(copy(&[b"nbase.tar\0\0", b"dxyz", b"m", b"d{}", b"p\0\0\0\0\0\0\0\x07"])).await.unwrap(),
        7
    );
    for broken in [
        copy(&[b"nbase.tar\0\0", b"dxyz"]),
        copy(&[b"m", b"d{}"]),
        copy(&[b"dxyz"]),
        copy(&[b"nbase.tar\0\0", b"m", b"nbase.tar\0\0"]),
        copy(&[b"n16385.tar\0/x\0", b"m"]),
        copy(&[b"n../../x\0\0", b"m"]),
        copy(&[b"q"]),
        copy(&[]),
        Vec::new(),
        message(b'G', b"\0\0\0"),
        message(b'D', b"\0\0"),
    ] {
        assert!(matches!(outcome(broken.clone()).await, Err(PgError::Protocol { .. })), "{broken:?}");
    }
    let failed = message(b'E', b"VERROR\0CXX000\0Mdisk on fire\0\0");
    assert!(matches!(outcome(failed).await, Err(PgError::Server(_))));
}

#[tokio::test]
async fn an_answer_with_holes_is_a_protocol_error() {
    let twice = identity();
    let row = twice.iter().position(|byte| *byte == b'D').unwrap();
    let twice = [&twice[..row], &twice[row..row + 28], &twice[row..]].concat();
    for answer in [
        [message(b'C', b"IDENTIFY_SYSTEM\0"), message(b'Z', b"I")].concat(),
        [message(b'D', b"\0\0"), message(b'Z', b"I")].concat(),
        [message(b'T', b"\0\0"), message(b'D', b"\0\x01\xff\xff\xff\xff")].concat(),
        twice,
    ] {
        let fake = scripted(vec![welcome(), answer.clone()]);
        let mut connection: Connection =
            attempt(&fake.conninfo(), ConnectionKind::PhysicalReplication).await.unwrap();
        let result = timeout(LIMIT, connection.identify_system()).await.expect("an answer in time");
        assert!(matches!(result, Err(PgError::Protocol { .. })), "{answer:?}: {result:?}");
    }
}
