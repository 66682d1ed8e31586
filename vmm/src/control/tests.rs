use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use holdfast_model::contract::vm::{RunState, WindowSize};

use super::*;
use proptest::prelude::*;

fn serve(answers: Vec<Reply>) -> (tempfile::TempDir, PathBuf, std::thread::JoinHandle<Vec<Result<Request, String>>>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control");
    let mut server = ControlServer::new(listen(&path).unwrap()).unwrap();
    let thread = std::thread::spawn(move || {
        let mut seen = Vec::new();
        for answer in answers {
            let request = loop {
                let _ = server.accept().unwrap();
                let found = (0..MAX_CONNECTIONS).find_map(|n| server.receive(n).map(|r| (n, r)));
                if let Some(found) = found {
                    break found;
                }
                std::thread::sleep(Duration::from_millis(1));
            };
            server.send(request.0, &answer, None);
            seen.push(request.1);
        }
        seen
    });
    (dir, path, thread)
}

#[test]
fn requests_and_replies_travel_as_packets() {
    let pong = Reply::Pong { version: "1".into(), state: RunState::Running };
    let (_dir, path, server) = serve(vec![pong, Reply::Done]);
    let mut client = ControlClient::connect(&path).unwrap();
    assert_eq!(client.ping().unwrap(), RunState::Running);
    drop(client);
    let mut again = ControlClient::connect(&path).unwrap();
    again.stop(Duration::from_secs(5)).unwrap();
    assert_eq!(server.join().unwrap(), [Ok(Request::Ping), Ok(Request::Stop { deadline_ms: 5000 })]);
}

#[test]
fn refusal_is_an_error_with_the_vms_words() {
    let (_dir, path, server) = serve(vec![Reply::Refused { reason: "busy".into() }]);
    let error = ControlClient::connect(&path).unwrap().pause().unwrap_err();
    assert!(matches!(&error, ControlError::Refused { reason, .. } if reason == "busy"));
    server.join().unwrap();
}

#[test]
fn nobody_listening_names_the_socket() {
    let error = ControlClient::connect("/nonexistent/control").unwrap_err().to_string();
    assert!(error.contains("/nonexistent/control") && error.contains("connect"), "{error}");
}

#[test]
fn wire_form_is_stable() {
    let text = |request: &Request| serde_json::to_string(request).unwrap();
    assert_eq!(text(&Request::Stop { deadline_ms: 7 }), r#"{"do":"stop","deadline_ms":7}"#);
    assert_eq!(text(&Request::PowerButton), r#"{"do":"power_button"}"#);
    assert_eq!(text(&Request::Balloon { target_mib: 64 }), r#"{"do":"balloon","target_mib":64}"#);
    assert_eq!(text(&Request::VsockCid { cid: 7 }), r#"{"do":"vsock_cid","cid":7}"#);
    assert_eq!(serde_json::to_string(&Reply::Done).unwrap(), r#"{"is":"done"}"#);
    assert!(parse(br#"{"do":"stop","deadline_ms":99999999999}"#).unwrap_err().contains("at most"));
    assert!(parse(br#"{"do":"dance"}"#).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn arbitrary_packets_never_panic(data in proptest::collection::vec(any::<u8>(), 0..100)) {
        fuzz_control(&data);
    }
}

/// A server and a connected client's raw socket.
fn connection() -> (tempfile::TempDir, ControlServer, UnixStream) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control");
    let mut server = ControlServer::new(listen(&path).unwrap()).unwrap();
    let (socket, address, len) = socket_for(&path).unwrap();
    // SAFETY: the address is initialised and `len` is its length.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len) }).unwrap();
    assert!(server.accept().unwrap().is_some());
    (dir, server, UnixStream::from(socket))
}

#[test]
fn packets_that_are_no_requests_are_refused_with_the_reason_and_the_next_is_served() {
    let (_dir, mut server, mut client) = connection();
    let too_long = vec![b' '; MAX_MESSAGE + 1];
    for (packet, word) in [
        (b"power_button".as_slice(), "not a request"),
        (br#"{"do":"dance"}"#, "dance"),
        (br#"{"do":"stop","deadline_ms":1,"now":true}"#, "now"),
        (br#"{"do":"attach_console","replay":1}"#, "boolean"),
        (b"\xff\xfe", "not a request"),
        (&too_long, "longer than 65536"),
    ] {
        client.write_all(packet).unwrap();
        let reason = server.receive(0).unwrap().unwrap_err();
        assert!(reason.contains(word), "{word:?} not in {reason:?}");
    }
    client.write_all(br#"{"do":"ping"}"#).unwrap();
    assert_eq!(server.receive(0), Some(Ok(Request::Ping)));
}

#[test]
fn descriptors_sent_along_are_closed_unseen() {
    let (_dir, mut server, client) = connection();
    for packet in [br#"{"do":"ping"}"#.as_slice(), br#"{"do":"attach_console"}"#, b"nonsense"] {
        let (mut kept, given) = UnixStream::pair().unwrap();
        rights::send(client.as_raw_fd(), packet, Some(&given.into())).unwrap();
        assert!(server.receive(0).is_some());
        // Ours was the sender's copy; the end of file says that there is no other.
        assert_eq!(kept.read(&mut [0]).unwrap(), 0);
    }
}

#[test]
fn client_that_takes_no_replies_is_disconnected() {
    let (_dir, mut server, mut client) = connection();
    client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let reply = Reply::Refused { reason: "x".repeat(60_000) };
    for _ in 0..100 {
        server.send(0, &reply, None);
    }
    let mut packets = 0;
    while client.read(&mut vec![0; MAX_MESSAGE]).unwrap() > 0 {
        packets += 1;
    }
    assert!(packets < 100, "the connection ends behind what fitted");
}

#[test]
fn attach_request_has_defaults_and_its_reply_names_the_console() {
    let request = Request::AttachConsole { console: None, replay: true };
    assert_eq!(parse(br#"{"do":"attach_console"}"#), Ok(request));
    let reply = Reply::Attached { console: "serial".into(), replayed: 3 };
    assert_eq!(serde_json::to_string(&reply).unwrap(), r#"{"is":"attached","console":"serial","replayed":3}"#);
    let resize = br#"{"do":"resize_console","size":{"columns":80,"rows":24}}"#;
    let size = WindowSize { columns: 80, rows: 24 };
    assert_eq!(parse(resize), Ok(Request::ResizeConsole { console: None, size }));
}
