//! DNS: the [`message`], own [`names`], and the [`forwarder`] for all others.

pub mod forwarder;
pub mod message;
pub mod names;

/// Fuzz entry: any bytes, as a query from an app and as an answer from an upstream server.
#[doc(hidden)]
pub fn fuzz_dns(data: &[u8]) {
    if let Ok(q) = message::Query::parse(data) {
        let reply = q.reply(message::Code::NoError, &[]);
        debug_assert!(message::is_reply_to(&reply, data));
    }
    let _ = message::is_reply_to(data, data);
}
