//! One HTTP GET, as a stranger on the network would send it.

use anyhow::{Context, Result, bail};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Most bytes of an answer that is text.
const MAX_ANSWER: u64 = 1 << 20;

/// Asks once; gives status and body.
///
/// # Errors
/// When there is no connection or no whole answer within `timeout` for each step.
pub fn get(address: SocketAddr, path: &str, timeout: Duration) -> Result<(u16, String)> {
    let (head, body) = get_with_head(address, path, timeout)?;
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).context("expected a status in the answer")?;
    Ok((status, body))
}

/// Asks once; gives status line with headers, and body.
///
/// # Errors
/// As [`get`].
pub fn get_with_head(address: SocketAddr, path: &str, timeout: Duration) -> Result<(String, String)> {
    let (head, body) = get_bytes(address, path, timeout, MAX_ANSWER)?;
    Ok((head, String::from_utf8_lossy(&body).into_owned()))
}

/// Asks once, for an answer of at most `most` bytes that need not be text; gives status line with headers, and body.
///
/// # Errors
/// As [`get`].
pub fn get_bytes(address: SocketAddr, path: &str, timeout: Duration, most: u64) -> Result<(String, Vec<u8>)> {
    let mut stream = TcpStream::connect_timeout(&address, timeout).context("connecting")?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").context("asking")?;
    let mut answer = Vec::new();
    stream.take(most).read_to_end(&mut answer).context("reading the answer")?;
    let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") else {
        bail!("expected an HTTP answer, found {} bytes", answer.len())
    };
    let body = answer.split_off(end + 4);
    answer.truncate(end);
    Ok((String::from_utf8_lossy(&answer).into_owned(), body))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn answered_by(answer: &'static str) -> Result<(u16, String)> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 1024]).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
        });
        let result = get(address, "/x", Duration::from_secs(5));
        server.join().unwrap();
        result
    }

    #[test]
    fn status_and_body_are_told_apart() {
        assert_eq!(answered_by("HTTP/1.1 404 Not Found\r\na: b\r\n\r\ngone\n").unwrap(), (404, "gone\n".into()));
    }

    #[test]
    fn half_an_answer_is_no_answer() {
        assert!(answered_by("HTTP/1.1 200").is_err());
        assert!(answered_by("").is_err());
    }
}
