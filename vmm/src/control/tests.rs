use std::time::Duration;

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
            server.send(request.0, &answer);
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
