"""C2PA manifests (Content Credentials): who signed that a sound file is generated, and whether it has changed since.

By c2pa-python (extra `c2pa`). A folder holds `certificate.pem`, the signer's certificate and those that vouch for it,
and `key.pem`, its private key. A signature that others trust needs a certificate of an authority on their lists
(docs/provenance.md). Nothing here reaches the network: no time stamp is asked for and no remote manifest is fetched.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from audiogen.errors import InputError, one_line
from audiogen.files.writing import replacing
from audiogen.provenance import SOURCE_TYPE, Provenance
from audiogen.version import __version__

CERTIFICATE, KEY = "certificate.pem", "key.pem"
TYPES = {".wav": "audio/wav", ".flac": "audio/flac", ".mp3": "audio/mpeg"}  # c2pa writes none into Ogg
RECORD = "org.audiogen.generation"  # the assertion with the record of `provenance`
LOCAL = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}


def sign(path: Path, origin: Provenance, folder: Path) -> None:
    """Put a signed manifest into a sound file, which is replaced. Each signature has numbers of its own."""
    c2pa, chain, key, algorithm = _opened(folder, path.suffix)
    agent = {"name": "audiogen", "version": __version__}
    created = {"action": "c2pa.created", "digitalSourceType": SOURCE_TYPE, "softwareAgent": agent}
    manifest = {
        "claim_generator_info": [agent],
        "title": path.name,
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": [created]}},
            {"label": RECORD, "data": origin.record()},
        ],
    }
    with replacing(path) as temporary:
        try:
            info = c2pa.C2paSignerInfo(algorithm, chain, key, None)
            with (
                c2pa.Context(c2pa.Settings.from_dict(LOCAL)) as context,
                c2pa.Signer.from_info(info) as signer,
                c2pa.Builder(json.dumps(manifest), context) as builder,
                path.open("rb") as source,
                temporary.open("x+b") as signed,
            ):
                builder.sign(signer, TYPES[path.suffix], source, signed)
        except c2pa.C2paError as error:
            raise InputError(
                f"{path} cannot be signed with {folder}: {one_line(error)[:300]}; C2PA wants a certificate for "
                "signing, not one that signs itself, and its chain"
            ) from None


def check(folder: Path, suffixes: set[str]) -> None:
    """InputError where files of these suffixes cannot be signed: the package, the certificate or the key is missing."""
    for suffix in sorted(suffixes):
        _opened(folder, suffix)


def read(path: Path) -> dict[str, str]:
    """What a file's manifest says: who signed it, and whether that holds; empty without one, or without c2pa-python."""
    try:
        import c2pa
    except ImportError:
        return {}
    if path.suffix.lower() not in TYPES:
        return {}
    try:
        with (
            c2pa.Context(c2pa.Settings.from_dict(LOCAL)) as context,
            path.open("rb") as file,
            c2pa.Reader(TYPES[path.suffix.lower()], file, context=context) as reader,
        ):
            found = json.loads(reader.json())
    except c2pa.C2paError as error:
        nothing = "ManifestNotFound" in str(error)
        return {} if nothing else {"C2PA": f"damaged: {one_line(error)[:200]}"}
    manifest = found["manifests"][found["active_manifest"]]
    signature = manifest.get("signature_info", {})
    signer = f"{signature.get('common_name', '?')} ({signature.get('issuer', '?')})"
    codes = {status["code"] for status in found.get("validation_status", [])}
    if codes - {"signingCredential.untrusted"}:
        return {"C2PA": f"not valid: {', '.join(sorted(codes))}; signed by {signer}"}
    trust = ", whom no list here vouches for" if codes else ""
    return {"C2PA": f"unchanged since it was signed by {signer}{trust}"}


def _opened(folder: Path, suffix: str) -> tuple[Any, bytes, bytes, Any]:
    """The package, the chain of certificates, the key, and the algorithm that fits it."""
    if suffix not in TYPES:
        raise InputError(f"C2PA has no manifests in {suffix[1:]}; choose wav, flac or mp3, or drop --c2pa")
    try:
        import c2pa
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    except ImportError as error:
        raise InputError(
            f"C2PA manifests need the package c2pa-python ({error}): pip install '.[c2pa]' in the checkout"
        ) from None
    try:
        chain, key = ((folder / name).read_bytes() for name in (CERTIFICATE, KEY))
        private = serialization.load_pem_private_key(key, None)
    except OSError as error:
        raise InputError(
            f"--c2pa {folder}: {error.filename} cannot be read ({error.strerror}); the folder holds {CERTIFICATE}, the "
            f"signer's certificate with its chain, and {KEY}"
        ) from None
    except (ValueError, TypeError) as error:  # TypeError: a key behind a password
        raise InputError(
            f"--c2pa {folder}: {KEY} is no private key in PEM ({one_line(error)[:150]})"
        ) from None
    sizes = {256: "ES256", 384: "ES384", 521: "ES512"}
    if isinstance(private, ec.EllipticCurvePrivateKey) and private.key_size in sizes:
        name = sizes[private.key_size]
    elif isinstance(private, ed25519.Ed25519PrivateKey):
        name = "ED25519"
    elif isinstance(private, rsa.RSAPrivateKey):
        name = "PS256"
    else:
        raise InputError(
            f"--c2pa {folder}: {KEY} is a {type(private).__name__}; C2PA signs by ECDSA, Ed25519 or RSA"
        )
    return c2pa, chain, key, getattr(c2pa.C2paSigningAlg, name)
