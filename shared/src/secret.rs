//! What is derived from the installation's secret: tenant names, and comparison of tokens.
//!
//! Why: tenants are told apart by their credentials, and credentials are never stored. A keyed hash
//! gives each a stable name that nobody without the secret can confirm a guess against.
//! Invariant: nothing here can be turned back into a credential, and no comparison leaks how much
//! of a token was right.

use std::net::IpAddr;

/// A 32-byte key for one purpose. `context` names the purpose and is part of the derivation; two
/// purposes never share a key.
pub fn derive(secret: &[u8; 32], context: &str) -> [u8; 32] {
    blake3::derive_key(&format!("hone 2026-11 {context}"), secret)
}

/// The name of the tenant behind a credential (the value of `Authorization`, `x-api-key`,
/// `api-key` or `x-goog-api-key`): 32 hex digits. A request without a credential belongs to the
/// tenant `anonymous`.
pub fn tenant_of(secret: &[u8; 32], credential: Option<&str>) -> String {
    Names::new(secret).tenant(credential)
}

/// The name of the person or program behind a connection: 16 hex digits of a keyed hash of address
/// and user agent. Neither can be read back from it.
pub fn client_of(secret: &[u8; 32], address: Option<IpAddr>, user_agent: Option<&str>) -> String {
    Names::new(secret).client(address, user_agent)
}

/// Names tenants and clients with keys that were derived once: for the path of requests.
#[derive(Clone)]
pub struct Names {
    tenant: [u8; 32],
    client: [u8; 32],
}

impl Names {
    /// The names that `secret` gives.
    pub fn new(secret: &[u8; 32]) -> Self {
        Self { tenant: derive(secret, "tenant"), client: derive(secret, "client") }
    }

    /// See [`tenant_of`].
    pub fn tenant(&self, credential: Option<&str>) -> String {
        let Some(credential) = credential.map(str::trim).filter(|c| !c.is_empty()) else {
            return "anonymous".to_owned();
        };
        let mut hasher = blake3::Hasher::new_keyed(&self.tenant);
        match bearer(credential) {
            Some(token) => hasher.update(b"Bearer ").update(token.as_bytes()),
            None => hasher.update(credential.as_bytes()),
        };
        hex::encode(&hasher.finalize().as_bytes()[..16])
    }

    /// See [`client_of`].
    pub fn client(&self, address: Option<IpAddr>, user_agent: Option<&str>) -> String {
        let address = address.map(|address| address.to_canonical().to_string()).unwrap_or_default();
        let mut hasher = blake3::Hasher::new_keyed(&self.client);
        for part in [address.as_str(), user_agent.unwrap_or_default()] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        hex::encode(&hasher.finalize().as_bytes()[..8])
    }
}

/// The token of a bearer credential. The scheme's letter case and the white space after it are not
/// part of the key (RFC 9110 §11.4).
pub fn bearer(credential: &str) -> Option<&str> {
    let (scheme, token) = credential.trim_start().split_once([' ', '\t'])?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

impl std::fmt::Debug for Names {
    /// Without the keys: this may end up in a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Names").finish_non_exhaustive()
    }
}

/// Whether two tokens are equal, in time that depends on their lengths only.
pub fn same_token(given: &str, expected: &str) -> bool {
    // `blake3::Hash` compares in constant time.
    blake3::hash(given.as_bytes()) == blake3::hash(expected.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_keeps_its_name_and_no_two_credentials_or_secrets_share_one() {
        let (a, b) = ([1u8; 32], [2u8; 32]);
        let name = tenant_of(&a, Some("Bearer sk-1"));
        assert_eq!(name, tenant_of(&a, Some(" Bearer sk-1 ")));
        for same in ["bearer sk-1", "BEARER   sk-1", "Bearer\tsk-1 "] {
            assert_eq!(name, tenant_of(&a, Some(same)), "one key is one tenant: {same}");
        }
        for other in ["sk-1", "Basic sk-1", "Bearersk-1", "Bearer SK-1"] {
            assert_ne!(name, tenant_of(&a, Some(other)), "{other}");
        }
        assert_eq!(name.len(), 32);
        assert!(!name.contains("sk-1"));
        assert_ne!(name, tenant_of(&a, Some("Bearer sk-2")));
        assert_ne!(name, tenant_of(&b, Some("Bearer sk-1")));
        assert_eq!(tenant_of(&a, None), "anonymous");
        assert_eq!(tenant_of(&a, Some("  ")), "anonymous");
    }

    #[test]
    fn clients_of_one_credential_are_told_apart_by_address_and_program() {
        let at = |text: &str| Some(text.parse().unwrap());
        let name = client_of(&[1; 32], at("10.0.0.1"), Some("a"));
        assert_eq!(name, client_of(&[1; 32], at("::ffff:10.0.0.1"), Some("a")), "one machine");
        assert_ne!(name, client_of(&[1; 32], at("10.0.0.2"), Some("a")));
        assert_ne!(name, client_of(&[1; 32], at("10.0.0.1"), Some("b")));
        assert_ne!(name, client_of(&[2; 32], at("10.0.0.1"), Some("a")));
    }

    #[test]
    fn purposes_do_not_share_keys_and_tokens_compare_whole() {
        assert_ne!(derive(&[1; 32], "tenant"), derive(&[1; 32], "link"));
        assert!(same_token("abc", "abc"));
        assert!(!same_token("abc", "abcd"));
        assert!(!same_token("", "a"));
    }
}
