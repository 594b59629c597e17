//! Which engine a conversation belongs to: rendezvous hashing.
//!
//! Why: an engine that has seen the beginning of a conversation has its KV cache. Each engine gets
//! a score from the conversation's key and its own name, and the highest wins; so when an engine
//! comes or goes, only its own conversations move, and two proxies agree without talking. (Pingora's
//! ketama ring is keyed by socket addresses, which change under a name.)
//!
//! Invariant: scores depend on nothing but the key and the name; a restart moves no conversation.

use std::net::IpAddr;

use hone_shared::link::header_session;
use http::HeaderMap;

/// The key of a request: its explicit session if a header names one, else who sends it and from
/// where. Conversations of different credentials never share a key.
pub fn key(headers: &HeaderMap, credential: Option<&str>, address: Option<IpAddr>) -> u64 {
    let mut hasher = blake3::Hasher::new();
    let mut part = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
    };
    part(credential.unwrap_or_default());
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    match header_session(header) {
        Some((name, id)) => [name, id].into_iter().for_each(part),
        None => {
            part(header("user-agent").unwrap_or_default());
            match address.map(|address| address.to_canonical()) {
                Some(IpAddr::V4(four)) => hasher.update(&four.octets()),
                Some(IpAddr::V6(six)) => hasher.update(&six.octets()),
                None => &mut hasher,
            };
        }
    }
    first_u64(&hasher.finalize())
}

/// What a name brings into its scores.
pub fn seed(name: &str) -> u64 {
    first_u64(&blake3::hash(name.as_bytes()))
}

/// The score of a name for a key (the finaliser of splitmix64).
pub fn score(key: u64, seed: u64) -> u64 {
    let mut z = key ^ seed;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn first_u64(hash: &blake3::Hash) -> u64 {
    u64::from_le_bytes(hash.as_bytes().first_chunk().copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap())).collect()
    }

    fn winner(key: u64, names: &[&str]) -> usize {
        (0..names.len()).max_by_key(|at| score(key, seed(names[*at]))).unwrap()
    }

    #[test]
    fn a_session_keeps_its_key_from_any_address_and_no_credential_shares_it() {
        let at = |text: &str| Some(text.parse().unwrap());
        let session = headers(&[("x-session-id", "s1"), ("user-agent", "a")]);
        let key_of = |h: &HeaderMap, c, a| key(h, Some(c), a);
        let one = key_of(&session, "Bearer 1", at("10.0.0.1"));
        assert_eq!(one, key_of(&session, "Bearer 1", at("10.0.0.2")));
        assert_ne!(one, key_of(&session, "Bearer 2", at("10.0.0.1")));
        let nobody = headers(&[("x-session-id", "default"), ("user-agent", "a")]);
        let plain = headers(&[("user-agent", "a")]);
        let by_address = key_of(&plain, "Bearer 1", at("10.0.0.1"));
        assert_eq!(by_address, key_of(&nobody, "Bearer 1", at("10.0.0.1")), "no session at all");
        assert_ne!(by_address, key_of(&plain, "Bearer 1", at("10.0.0.2")));
        assert_eq!(by_address, key_of(&plain, "Bearer 1", at("::ffff:10.0.0.1")));
    }

    #[test]
    fn keys_spread_evenly_and_only_a_lost_engines_keys_move() {
        let names = ["a:1", "b:1", "c:1", "d:1"];
        let keys: Vec<u64> = (0..20_000).map(|n| seed(&format!("key {n}"))).collect();
        let mut counts = [0usize; 4];
        for key in &keys {
            counts[winner(*key, &names)] += 1;
        }
        assert!(counts.iter().all(|n| (4_600..5_400).contains(n)), "{counts:?}");
        let without = ["a:1", "b:1", "d:1"];
        for key in keys {
            let before = names[winner(key, &names)];
            let after = without[winner(key, &without)];
            assert!(before == "c:1" || before == after, "{before} moved to {after}");
        }
    }
}
