//! Ed25519 keys that models are signed with, as lines of text.
//!
//! ```text
//! brokertuner-model-public-key ed25519 <32 bytes in hex>
//! brokertuner-model-secret-key ed25519 <the 32 bytes of the seed in hex>
//! ```
//! `host keygen` writes both, `host export --sign` reads the second, `edge` the first.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use brokertuner_core::model::{Model, SIGNATURE_BYTES};
use ed25519_compact::{KeyPair, PublicKey, Seed, Signature};

use crate::fs::{self, FileError, Files, RealFiles};

const PUBLIC: &str = "brokertuner-model-public-key";
const SECRET: &str = "brokertuner-model-secret-key";
const ALGORITHM: &str = "ed25519";
const KEY_BYTES: usize = 32;

/// Why a key can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It can't be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is not there.
    #[error("{}: no such file; `host keygen` makes a pair of keys", path.display())]
    Absent {
        /// The file.
        path: PathBuf,
    },
    /// The secret half lies where the public one belongs.
    #[error("{}: this is the secret key, which belongs on the workstation only; put the .pub file here and make a new pair", path.display())]
    SecretForPublic {
        /// The file.
        path: PathBuf,
    },
    /// It holds something else.
    #[error("{}: not a {kind} of `host keygen`: {what}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// `public key` or `secret key`.
        kind: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// A key that models may be signed with, and where it lies.
#[derive(Debug, Clone)]
pub struct TrustedKey {
    /// Its file.
    pub path: PathBuf,
    key: PublicKey,
}

impl TrustedKey {
    /// Reads a public key.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let wrong = |what| KeyError::Malformed { path: path.into(), kind: "public key", what };
        let text = read(path)?;
        if text.starts_with(SECRET) {
            return Err(KeyError::SecretForPublic { path: path.into() });
        }
        let key = PublicKey::new(parse(&text, PUBLIC).map_err(wrong)?);
        Ok(Self { path: path.into(), key })
    }

    /// Whether `signature` is this key's over `signed`.
    #[must_use]
    pub fn has_signed(&self, signed: &[u8], signature: &[u8; SIGNATURE_BYTES]) -> bool {
        self.key.verify(signed, &Signature::new(*signature)).is_ok()
    }
}

/// The first of `keys` that has signed `bytes`, the file of `model`.
#[must_use]
pub fn signer<'k>(keys: &'k [TrustedKey], bytes: &[u8], model: &Model<'_>) -> Option<&'k Path> {
    let signature = model.signature()?;
    let signed = bytes.get(..bytes.len().checked_sub(SIGNATURE_BYTES)?)?;
    let signer = keys.iter().find(|key| key.has_signed(signed, signature))?;
    Some(&signer.path)
}

/// The secret half: never needed on a gateway.
pub struct SigningKey(KeyPair);

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SigningKey").finish_non_exhaustive()
    }
}

impl SigningKey {
    /// The key of 32 random bytes.
    #[must_use]
    pub fn of_seed(seed: [u8; KEY_BYTES]) -> Self {
        Self(KeyPair::from_seed(Seed::new(seed)))
    }

    /// Reads a secret key.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let wrong = |what| KeyError::Malformed { path: path.into(), kind: "secret key", what };
        Ok(Self::of_seed(parse(&read(path)?, SECRET).map_err(wrong)?))
    }

    /// The content of the secret key's file.
    #[must_use]
    pub fn secret_line(&self) -> String {
        line(SECRET, &*self.0.sk.seed())
    }

    /// The content of the public key's file.
    #[must_use]
    pub fn public_line(&self) -> String {
        line(PUBLIC, &*self.0.pk)
    }

    /// Signs all bytes of a model file that stand before its signature.
    #[must_use]
    pub fn sign(&self, bytes: &[u8]) -> [u8; SIGNATURE_BYTES] {
        *self.0.sk.sign(bytes, None)
    }
}

fn read(path: &Path) -> Result<String, KeyError> {
    let bytes = RealFiles.read(path).map_err(fs::at("read", path))?;
    let bytes = bytes.ok_or_else(|| KeyError::Absent { path: path.into() })?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn line(kind: &str, bytes: &[u8]) -> String {
    let mut line = format!("{kind} {ALGORITHM} ");
    for byte in bytes {
        // Writing to a string has no way to fail.
        let _ = write!(line, "{byte:02x}");
    }
    line + "\n"
}

/// The bytes of the only line.
fn parse(text: &str, kind: &str) -> Result<[u8; KEY_BYTES], &'static str> {
    let mut words = text.split_whitespace();
    if words.next() != Some(kind) {
        return Err("its first word is another");
    }
    if words.next() != Some(ALGORITHM) {
        return Err("its algorithm is not ed25519");
    }
    let hex = words.next().unwrap_or_default().as_bytes();
    if hex.len() != 2 * KEY_BYTES || words.next().is_some() {
        return Err("its key is not 64 hexadecimal digits");
    }
    let mut key = [0; KEY_BYTES];
    for (byte, pair) in key.iter_mut().zip(hex.chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).ok().filter(|pair| !pair.starts_with('+'));
        let digits = pair.and_then(|pair| u8::from_str_radix(pair, 16).ok());
        *byte = digits.ok_or("its key is not 64 hexadecimal digits")?;
    }
    Ok(key)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    /// RFC 8032, section 7.1, test 3.
    #[test]
    fn the_signature_is_that_of_the_standard() {
        let seed = "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7";
        let key =
            SigningKey::of_seed(parse(&format!("{SECRET} {ALGORITHM} {seed}"), SECRET).unwrap());
        let public = "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025";
        assert_eq!(key.public_line(), format!("{PUBLIC} {ALGORITHM} {public}\n"));
        assert_eq!(key.secret_line(), format!("{SECRET} {ALGORITHM} {seed}\n"));
        let signature = key.sign(&[0xaf, 0x82]);
        assert_eq!(signature[..4], [0x62, 0x91, 0xd6, 0x57]);
        assert_eq!(signature[60..], [0xea, 0x1e, 0xc4, 0x0a]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.pub");
        std::fs::write(&path, key.public_line()).unwrap();
        let trusted = TrustedKey::load(&path).unwrap();
        assert!(trusted.has_signed(&[0xaf, 0x82], &signature));
        assert!(!trusted.has_signed(&[0xaf, 0x83], &signature));
        for bit in 0..signature.len() * 8 {
            let mut forged = signature;
            forged[bit / 8] ^= 1 << (bit % 8);
            assert!(!trusted.has_signed(&[0xaf, 0x82], &forged), "bit {bit}");
        }
    }

    #[test]
    fn what_is_no_key_is_named_and_a_secret_one_is_not_taken_for_public() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.pub");
        assert!(matches!(TrustedKey::load(&path), Err(KeyError::Absent { .. })));
        let key = SigningKey::of_seed([7; 32]);
        std::fs::write(&path, key.secret_line()).unwrap();
        let error = TrustedKey::load(&path).unwrap_err();
        assert!(matches!(error, KeyError::SecretForPublic { .. }), "{error}");
        assert!(!error.to_string().contains("0707"), "the key is never printed: {error}");
        assert_eq!(format!("{key:?}"), "SigningKey(..)");
        for wrong in ["", "x", PUBLIC, &format!("{PUBLIC} rsa 00"), &format!("{PUBLIC} ed25519 0")]
        {
            std::fs::write(&path, wrong).unwrap();
            assert!(matches!(TrustedKey::load(&path), Err(KeyError::Malformed { .. })), "{wrong}");
        }
        let plus = format!("{PUBLIC} ed25519 {}", "+1".repeat(32));
        std::fs::write(&path, plus).unwrap();
        assert!(TrustedKey::load(&path).is_err());
    }
}
