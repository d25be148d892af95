//! `coordinator certs`: an authority of its own, certificates for both sides and a token, so that a run can leave the machine in one command.
//! The authority's key is used here and forgotten: no file can make another certificate. To renew, make a new directory.

use anyhow::{Context, ensure};
use clap::Args;
use quorum_core::tls::MEMBER_NAME;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use std::fs;
use std::io::Write;
use std::net::Ipv6Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio_rustls::rustls::pki_types::ServerName;

/// Clocks of two machines may differ.
const SKEW: Duration = Duration::from_secs(3600);
const DAY: u64 = 24 * 3600;
/// Bytes of randomness in a token.
const SECRET: usize = 32;
/// Names that always reach a coordinator on its own machine.
const LOCAL: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

#[derive(Debug, Clone, Args)]
pub struct CertsOptions {
    /// New directory; `coordinator/` is for the coordinator's machine, `member/` for those of workers and learner.
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Name or address by which workers and learner reach the coordinator; may be repeated. localhost is always among them.
    #[arg(long = "host", value_name = "NAME")]
    pub hosts: Vec<String>,
    /// Days until the certificates expire.
    #[arg(long, default_value_t = 365, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=3650))]
    pub days: u64,
    /// Succeed and change nothing if the directory holds all files already.
    #[arg(long)]
    pub keep: bool,
}

struct Pair {
    cert: String,
    key: String,
}

pub(super) fn certs(options: &CertsOptions) -> anyhow::Result<()> {
    let sides = ["coordinator", "member"].map(|side| options.dir.join(side));
    let files = || sides.iter().flat_map(|d| ["ca.pem", "cert.pem", "key.pem", "token"].map(|f| d.join(f)));
    if options.keep && files().all(|f| f.is_file()) {
        return super::show(&format!("{} holds certificates and token already\n", options.dir.display()));
    }
    if let Some(there) = files().find(|f| f.exists()) {
        anyhow::bail!("{} exists; choose a new directory, or remove the old files to renew them", there.display());
    }
    let hosts = options.hosts.iter().map(|h| host(h)).collect::<anyhow::Result<Vec<_>>>()?;
    let names: Vec<String> = LOCAL.iter().map(|n| (*n).to_owned()).chain(hosts.iter().cloned()).collect();
    let (ca, [coordinator, member]) = make(&names, options.days)?;
    let token = secret()?;
    for (dir, pair) in sides.iter().zip([coordinator, member]) {
        fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        write(&dir.join("ca.pem"), &ca, 0o644)?;
        write(&dir.join("cert.pem"), &pair.cert, 0o644)?;
        write(&dir.join("key.pem"), &pair.key, 0o600)?;
        write(&dir.join("token"), &format!("{token}\n"), 0o600)?;
    }
    super::show(&commands(&options.dir, hosts.first().map_or("localhost", String::as_str)))
}

/// A name or address as clients check it; an IPv6 address may stand in brackets.
fn host(text: &str) -> anyhow::Result<String> {
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).filter(|t| t.parse::<Ipv6Addr>().is_ok());
    let host = bare.unwrap_or(text);
    let name = ServerName::try_from(host).ok().filter(|_| !host.ends_with('.'));
    name.with_context(|| format!("--host {text:?}: not a host name or address; no port, no URL, no dot at the end"))?;
    Ok(host.to_owned())
}

/// The authority's certificate, and those of coordinator and members.
fn make(names: &[String], days: u64) -> anyhow::Result<(String, [Pair; 2])> {
    let mut params = CertificateParams::default();
    params.distinguished_name = name("Quorum run authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    period(&mut params, days)?;
    let key = KeyPair::generate()?;
    let ca = params.self_signed(&key)?.pem();
    let issuer = Issuer::new(params, key);
    let signed = |who: &str, names: &[String], uses: &[ExtendedKeyUsagePurpose]| -> anyhow::Result<Pair> {
        let mut params = CertificateParams::new(names.to_vec())?;
        params.distinguished_name = name(who);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = uses.to_vec();
        period(&mut params, days)?;
        let key = KeyPair::generate()?;
        Ok(Pair { cert: params.signed_by(&key, &issuer)?.pem(), key: key.serialize_pem() })
    };
    let (client, server) = (ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth);
    let coordinator = signed("quorum coordinator", names, std::slice::from_ref(&server))?;
    // A member shows it to the coordinator, and serves its own page with it.
    let member = signed("quorum member", &[MEMBER_NAME.to_owned(), "localhost".into()], &[client, server])?;
    Ok((ca, [coordinator, member]))
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

fn period(params: &mut CertificateParams, days: u64) -> anyhow::Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(SKEW);
    params.not_after = epoch + now + Duration::from_secs(days * DAY);
    Ok(())
}

/// Random bytes of the kernel, in hex.
fn secret() -> anyhow::Result<String> {
    let mut bytes = [0u8; SECRET];
    let mut random = fs::File::open("/dev/urandom").context("/dev/urandom")?;
    std::io::Read::read_exact(&mut random, &mut bytes).context("/dev/urandom")?;
    ensure!(bytes.iter().any(|b| *b != 0), "/dev/urandom gives zeros only");
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// Writes a new file that never had wider permissions than `mode`.
fn write(path: &Path, content: &str, mode: u32) -> anyhow::Result<()> {
    let written = fs::OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(mode)
        .open(path)
        .and_then(|mut f| f.write_all(content.as_bytes()).and_then(|()| f.sync_all()));
    written.with_context(|| path.display().to_string())
}

/// Commands for a shell that use the files.
fn commands(dir: &Path, host: &str) -> String {
    let (own, member) = (dir.join("coordinator"), dir.join("member"));
    let set = |key: &str, side: &Path, file: &str| quoted(&format!("cluster.{key}={}", side.join(file).display()));
    let sets = |pairs: &[(&str, &Path, &str)]| {
        pairs.iter().map(|(key, side, file)| format!(" --set {}", set(key, side, file))).collect::<String>()
    };
    let listening = sets(&[
        ("tls_cert", &own, "cert.pem"),
        ("tls_key", &own, "key.pem"),
        ("tls_client_ca", &own, "ca.pem"),
        ("token_file", &own, "token"),
    ]);
    let dialling = sets(&[
        ("tls_ca", &member, "ca.pem"),
        ("tls_member_cert", &member, "cert.pem"),
        ("tls_member_key", &member, "key.pem"),
    ]);
    let url = if host.parse::<Ipv6Addr>().is_ok() {
        format!("https://[{host}]:7070")
    } else {
        format!("https://{host}:7070")
    };
    let flags: String =
        [("tls-ca", "ca.pem"), ("tls-cert", "cert.pem"), ("tls-key", "key.pem"), ("token-file", "token")]
            .map(|(flag, file)| format!(" --{flag} {}", quoted(&member.join(file).display().to_string())))
            .concat();
    let (own, member) = (own.display(), member.display());
    format!(
        "# the coordinator's machine (keep {own} there)
coordinator --set cluster.listen=0.0.0.0:7070{listening}
# the same, with a learner and workers of its own (keep {member} there, too)
coordinator --workers 1 --set cluster.listen=0.0.0.0:7070{listening}{dialling}
# every other machine (copy {member} there)
learner --coordinator {url}{flags}
rollout-worker --coordinator {url}{flags}
"
    )
}

/// One word for a shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./=:@%+,".contains(c);
    if word.chars().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn options(dir: &Path) -> CertsOptions {
        CertsOptions { dir: dir.to_owned(), hosts: vec!["gpu-7.example".into()], days: 30, keep: false }
    }

    #[test]
    fn secrets_are_private_and_nothing_is_overwritten() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("certs");
        certs(&options(&dir)).unwrap();
        let mode = |file: &str| fs::metadata(dir.join(file)).unwrap().permissions().mode() & 0o777;
        for secret in ["coordinator/key.pem", "coordinator/token", "member/key.pem", "member/token"] {
            assert_eq!(mode(secret) & 0o077, 0, "{secret} can be read by others");
        }
        let read = |file: &str| fs::read_to_string(dir.join(file)).unwrap();
        assert_eq!(read("coordinator/token"), read("member/token"));
        assert_eq!(read("coordinator/token").trim().len(), 2 * SECRET);
        assert_eq!(read("coordinator/ca.pem"), read("member/ca.pem"));
        assert_ne!(read("coordinator/key.pem"), read("member/key.pem"));
        let keys = ["coordinator", "member"].map(|d| fs::read_dir(dir.join(d)).unwrap().count());
        assert_eq!((keys, fs::read_dir(&dir).unwrap().count()), ([4, 4], 2), "the authority's key is not kept");

        assert!(certs(&options(&dir)).unwrap_err().to_string().contains("exists"));
        let before = read("member/token");
        certs(&CertsOptions { keep: true, ..options(&dir) }).unwrap();
        assert_eq!(read("member/token"), before);
        fs::remove_file(dir.join("member/token")).unwrap();
        assert!(certs(&CertsOptions { keep: true, ..options(&dir) }).is_err(), "half a set is not kept");
    }

    #[test]
    fn hosts_are_names_or_addresses_that_clients_can_check() {
        for (given, taken) in [
            ("gpu-7.example", "gpu-7.example"),
            ("gpu_7", "gpu_7"),
            ("10.0.0.7", "10.0.0.7"),
            ("[fd00::7]", "fd00::7"),
            ("::1", "::1"),
        ] {
            assert_eq!(host(given).unwrap(), taken);
        }
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("certs");
        for odd in [
            "",
            " ",
            "a b",
            "a/b",
            "https://a",
            "a:7070",
            "[a]",
            "[::1]:7070",
            "no ünicode",
            "-a",
            "a..b",
            "a.b.",
            "*.a",
            "10.0.0.300",
        ] {
            let e = certs(&CertsOptions { hosts: vec!["good".into(), odd.into()], ..options(&dir) })
                .unwrap_err()
                .to_string();
            assert!(e.contains("--host") && e.contains(odd) && !dir.exists(), "{odd:?}: {e}");
        }
        let text = commands(Path::new("/x/it's a place"), "fd00::7");
        assert!(
            text.contains("https://[fd00::7]:7070") && text.contains(r"'/x/it'\''s a place/member/ca.pem'"),
            "{text}"
        );
        assert!(commands(Path::new("certs"), "h").contains("--tls-ca certs/member/ca.pem "), "no quotes without need");
    }
}
