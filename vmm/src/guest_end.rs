//! What the guest's init says of its own end, on a console port of that purpose ([`GUEST_END_PORT`]).
//!
//! A power-off says nothing of why: a container whose program failed powers off as one whose program is done does. The
//! guest's words are a stranger's, so they can only refine an end that the guest brought about itself.
#![forbid(unsafe_code)]

use holdfast_model::contract::end::{End, ExitClass};
use holdfast_unit::last_words;

/// The end of a VM whose guest wrote `said` to the port: the guest's own last line, where it may speak.
pub fn refine(end: End, said: &[u8]) -> End {
    if !matches!(end.class, ExitClass::PowerOff | ExitClass::GuestReset) {
        return end;
    }
    let last = said.split(|byte| *byte == b'\n').rfind(|line| !line.is_empty());
    match last.and_then(last_words::parse) {
        Some(guest) if is_guests(guest.class) => guest,
        _ => end,
    }
}

/// Whether a guest may end with this class by its own word.
fn is_guests(class: ExitClass) -> bool {
    matches!(class, ExitClass::GuestExit { .. } | ExitClass::GuestSignal { .. } | ExitClass::GuestError)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn off() -> End {
        End::new(ExitClass::PowerOff, "guest power-off")
    }

    #[test]
    fn the_last_line_of_the_guest_is_the_reason_of_its_power_off() {
        let said = br#"{"class":"guest-error","reason":"early"}
{"class":{"guest-exit":{"code":3}},"reason":"the program ended with exit code 3"}
"#;
        let end = refine(off(), said);
        assert_eq!(end, End::new(ExitClass::GuestExit { code: 3 }, "the program ended with exit code 3"));
    }

    #[test]
    fn a_guest_cannot_speak_for_the_vmm() {
        for class in [r#""done""#, r#""host-fault""#, r#""out-of-memory""#, r#"{"killed":{"signal":9}}"#] {
            let said = format!(r#"{{"class":{class},"reason":"x"}}"#);
            assert_eq!(refine(off(), said.as_bytes()), off(), "{class}");
        }
        let fault = End::guest_fault("net0: ring");
        let said = br#"{"class":{"guest-exit":{"code":0}},"reason":"all is well"}"#;
        assert_eq!(refine(fault.clone(), said), fault);
    }

    #[test]
    fn silence_and_noise_leave_the_end_as_it_is() {
        for said in [&b""[..], b"\n\n", b"noise", &[b'x'; 100_000]] {
            assert_eq!(refine(off(), said), off());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(said in proptest::collection::vec(any::<u8>(), 0..300)) {
            refine(off(), &said);
        }
    }
}
