"""C2PA manifests: signed with a certificate made here, checked by C2PA's own library, broken by a changed bit."""

import datetime
import json
from pathlib import Path

import pytest
import soundfile

from audiogen import credentials, provenance
from audiogen.errors import InputError, run_command
from audiogen.generate.__main__ import main
from audiogen.info.__main__ import main as info
from audiogen.provenance import SOURCE_TYPE, Provenance

c2pa = pytest.importorskip("c2pa", reason="needs the extra c2pa")
from cryptography import x509  # noqa: E402
from cryptography.hazmat.primitives import hashes, serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec, ed25519  # noqa: E402
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID  # noqa: E402

PEM = serialization.Encoding.PEM


def name_of(common: str) -> x509.Name:
    words = {NameOID.COUNTRY_NAME: "XX", NameOID.ORGANIZATION_NAME: "Tests", NameOID.COMMON_NAME: common}
    return x509.Name([x509.NameAttribute(key, value) for key, value in words.items()])


def certificate(common: str, issuer: str, key, signer, is_authority: bool) -> x509.Certificate:
    """One that C2PA takes: X.509 version 3, with its uses."""
    usage = x509.KeyUsage(
        not is_authority, False, False, False, False, is_authority, is_authority, False, False
    )
    made = (
        x509.CertificateBuilder()
        .subject_name(name_of(common))
        .issuer_name(name_of(issuer))
        .public_key(key.public_key())
        .serial_number(1 + is_authority)
        .not_valid_before(datetime.datetime(2020, 1, 1))
        .not_valid_after(datetime.datetime(2120, 1, 1))
        .add_extension(x509.BasicConstraints(is_authority, None), True)
        .add_extension(usage, True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
    )
    if not is_authority:
        made = made.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), False)
    return made.sign(signer, hashes.SHA256())


def write_key(path: Path, key) -> None:
    path.write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))


@pytest.fixture(scope="module", params=["ecdsa", "ed25519"])
def identity(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a test certificate, its chain and its key."""
    folder = tmp_path_factory.mktemp("identity")
    authority = ec.generate_private_key(ec.SECP256R1())
    is_curve = request.param == "ecdsa"
    key = ec.generate_private_key(ec.SECP256R1()) if is_curve else ed25519.Ed25519PrivateKey.generate()
    chain = [
        certificate("A tester", "A test authority", key, authority, False),
        certificate("A test authority", "A test authority", authority, authority, True),
    ]
    (folder / "certificate.pem").write_bytes(b"".join(each.public_bytes(PEM) for each in chain))
    write_key(folder / "key.pem", key)
    return folder


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3"])
def test_a_signed_file_is_valid_until_a_bit_changes(
    identity: Path, tiny_model: Path, tmp_path: Path, monkeypatch, capsys, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--model", str(tiny_model), "--device", "cpu", "--duration", "0.3", "--text", "rain"]
    assert run_command(main, [*words, "--out", f"plain.{kind}"]) == 0
    assert run_command(main, [*words, "--out", f"a.{kind}", "--c2pa", str(identity)]) == 0
    path = Path(f"a.{kind}")
    with path.open("rb") as file, c2pa.Reader(credentials.TYPES[path.suffix], file) as reader:
        found = json.loads(reader.json())
    assert found["validation_state"] == "Valid"
    manifest = found["manifests"][found["active_manifest"]]
    (actions, record) = (each["data"] for each in manifest["assertions"])
    assert actions["actions"][0]["digitalSourceType"] == SOURCE_TYPE
    assert record == provenance.read(path).record() == provenance.read(Path(f"plain.{kind}")).record()
    assert (soundfile.read(path)[0] == soundfile.read(f"plain.{kind}")[0]).all()
    capsys.readouterr()
    assert run_command(info, [str(path)]) == 0
    shown = capsys.readouterr().out
    assert "C2PA: unchanged since it was signed by A tester (Tests), whom no list here vouches for" in shown
    assert "--c2pa" not in shown.split("command:")[1]
    content = bytearray(path.read_bytes())
    place = content.index(b"data") + 500 if kind == "wav" else len(content) - 50
    content[place] ^= 1
    path.write_bytes(content)
    assert credentials.read(path)["C2PA"].startswith("not valid: assertion.dataHash.mismatch, ")


def test_no_manifest_is_no_line(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", [0.0, 0.1], 8000)
    assert credentials.read(tmp_path / "a.wav") == {} == credentials.read(tmp_path / "a.ogg")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (
            lambda folder: (folder / "key.pem").unlink(),
            "key.pem cannot be read .*; the folder holds certificate.pem",
        ),
        (lambda folder: (folder / "key.pem").write_text("no key"), "key.pem is no private key in PEM"),
        (lambda folder: (folder / "certificate.pem").unlink(), "certificate.pem cannot be read"),
    ],
)
def test_a_folder_that_cannot_sign_is_named_before_anything_is_made(
    identity: Path, tmp_path: Path, tiny_model: Path, monkeypatch, capsys, break_it, message: str
) -> None:
    import re
    import shutil

    monkeypatch.chdir(tmp_path)
    folder = Path(shutil.copytree(identity, tmp_path / "broken"))
    break_it(folder)
    status = run_command(
        main, ["--model", str(tiny_model), "--text", "rain", "--out", "a.wav", "--c2pa", "broken"]
    )
    error = capsys.readouterr().err
    assert status == 2 and error.count("\n") == 1 and re.search(message, error) and not Path("a.wav").exists()


def test_a_key_of_another_certificate_and_a_format_without_manifests_are_named(
    identity: Path, tmp_path: Path
) -> None:
    (tmp_path / "certificate.pem").write_bytes((identity / "certificate.pem").read_bytes())
    write_key(tmp_path / "key.pem", ec.generate_private_key(ec.SECP384R1()))
    path = tmp_path / "a.wav"
    soundfile.write(path, [0.0] * 800, 8000)
    before = path.read_bytes()
    with pytest.raises(
        InputError, match=r"a.wav cannot be signed with .*C2PA wants a certificate for signing"
    ):
        credentials.sign(path, Provenance("m"), tmp_path)
    assert path.read_bytes() == before
    with pytest.raises(InputError, match="C2PA has no manifests in ogg; choose wav, flac or mp3"):
        credentials.check(identity, {".ogg"})


def test_without_the_package_a_line_says_how_to_get_it(
    identity: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "c2pa", None)
    with pytest.raises(InputError, match=r"need the package c2pa-python .*: pip install '.\[c2pa\]'"):
        credentials.check(identity, {".wav"})
    assert credentials.read(Path("a.wav")) == {}
