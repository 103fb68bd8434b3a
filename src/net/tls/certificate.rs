//! `tls-server-end-point` (RFC 5929, section 4.1): the hash of the server's certificate, by the hash function of its
//! signature; SHA-256 where that is MD5 or SHA-1; nothing where the signature names none.

use sha2::{Digest, Sha256, Sha384, Sha512};

/// The hash of a certificate in DER, or `None` when its signature algorithm names no hash function.
pub(in crate::net) fn server_end_point_hash(der: &[u8]) -> Option<Vec<u8>> {
    Some(match signature_hash(der)? {
        Hash::Sha256 => Sha256::digest(der).to_vec(),
        Hash::Sha384 => Sha384::digest(der).to_vec(),
        Hash::Sha512 => Sha512::digest(der).to_vec(),
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

const SEQUENCE: u8 = 0x30;
const OBJECT_IDENTIFIER: u8 = 0x06;

/// 1.2.840.113549.1.1, PKCS #1.
const PKCS1: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
/// 1.2.840.10045.4, ECDSA signatures.
const ECDSA: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04];

/// Certificate ::= SEQUENCE { tbsCertificate, signatureAlgorithm SEQUENCE { OBJECT IDENTIFIER, parameters }, ... }
fn signature_hash(der: &[u8]) -> Option<Hash> {
    let (certificate, _) = element(der, SEQUENCE)?;
    let (_, after_tbs) = element(certificate, SEQUENCE)?;
    let (algorithm, _) = element(after_tbs, SEQUENCE)?;
    let (oid, _) = element(algorithm, OBJECT_IDENTIFIER)?;
    match (oid.strip_prefix(PKCS1), oid.strip_prefix(ECDSA)) {
        // md5WithRSA, sha1WithRSA, sha256WithRSA, sha384WithRSA, sha512WithRSA
        (Some([4 | 5 | 11]), _) => Some(Hash::Sha256),
        (Some([12]), _) => Some(Hash::Sha384),
        (Some([13]), _) => Some(Hash::Sha512),
        // ecdsa-with-SHA1, then the SHA-2 family
        (_, Some([1] | [3, 2])) => Some(Hash::Sha256),
        (_, Some([3, 3])) => Some(Hash::Sha384),
        (_, Some([3, 4])) => Some(Hash::Sha512),
        _ => None,
    }
}

/// The content of the DER element at the front, if it has this tag, and what follows it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    if found != tag { None } else { rest.split_at_checked(length) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn certificate(oid: &[u8]) -> Vec<u8> {
        let wrap = |tag: u8, content: &[u8]| [&[tag, 0x82, 0, content.len() as u8], content].concat();
        let algorithm = wrap(SEQUENCE, &wrap(OBJECT_IDENTIFIER, oid));
        wrap(SEQUENCE, &[wrap(SEQUENCE, b"tbs"), algorithm].concat())
    }

    #[test]
    fn the_signature_names_the_hash() {
        let length = |prefix: &[u8], rest: &[u8]| {
            server_end_point_hash(&certificate(&[prefix, rest].concat())).map(|hash| hash.len())
        };
        assert_eq!(length(PKCS1, &[5]), Some(32));
        assert_eq!(length(PKCS1, &[11]), Some(32));
        assert_eq!(length(PKCS1, &[13]), Some(64));
        assert_eq!(length(PKCS1, &[10]), None);
        assert_eq!(length(ECDSA, &[3, 2]), Some(32));
        assert_eq!(length(ECDSA, &[3, 3]), Some(48));
        assert_eq!(length(&[0x2b, 0x65, 0x70], &[]), None);
    }

    #[test]
    fn reads_a_real_certificate() {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let cert = rcgen::CertificateParams::new(vec!["db".to_owned()]).unwrap().self_signed(&key).unwrap();
        assert_eq!(signature_hash(cert.der()), Some(Hash::Sha384));
    }

    proptest! {
        #[test]
        fn hostile_certificates_name_nothing(der in prop::collection::vec(prop::sample::select(vec![0x30u8, 0x06, 0x82, 0x84, 0, 1, 0x2a, 0xff]), 0..40)) {
            let _ = server_end_point_hash(&der);
        }
    }
}
