//! Valid samples, made by the real encoders where there are any: mutations of something that is read to its end go deeper than
//! mutations of noise.
//!
//! By subject: [`controller`], [`image`], [`fetch`], [`network`], [`unit`], [`vmm`].

pub mod controller;
pub mod fetch;
pub mod image;
pub mod network;
pub mod unit;
pub mod vmm;

use p256::ecdsa::SigningKey;

/// Samples.
pub type Seeds = Vec<Vec<u8>>;

fn texts(list: &[&str]) -> Seeds {
    list.iter().map(|t| t.as_bytes().to_vec()).collect()
}

fn key() -> Option<SigningKey> {
    SigningKey::from_slice(&[9; 32]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_format::site::Site;

    /// Mutations of what is refused at its first byte find little.
    #[test]
    fn documents_among_the_seeds_are_accepted() {
        for seed in vmm::config() {
            let read = holdfast_vmm::config::parse(&seed);
            assert!(read.is_ok(), "{}: {read:?}", String::from_utf8_lossy(&seed));
        }
        for seed in vmm::control() {
            use holdfast_model::contract::vm::{Reply, Request};
            let request = serde_json::from_slice::<Request>(&seed).map_err(|e| e.to_string());
            let reply = serde_json::from_slice::<Reply>(&seed).map_err(|e| e.to_string());
            assert!(request.is_ok() || reply.is_ok(), "{}: {request:?} {reply:?}", String::from_utf8_lossy(&seed));
        }
        for seed in image::site().iter().filter(|seed| seed.first() == Some(&b'{')) {
            serde_json::from_slice::<Site>(seed).unwrap();
        }
        for seed in network::netsvc_control() {
            serde_json::from_slice::<holdfast_model::contract::network::Request>(&seed).unwrap();
        }
        for seed in unit::document() {
            let text = seed.split(|byte| *byte == 0).next().unwrap_or_default();
            holdfast_model::contract::read::<holdfast_model::contract::guest::AppDocument>(text).unwrap();
        }
    }
}
