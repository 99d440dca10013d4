//! TLS, client certificates and passwords against a real Mosquitto.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use brokertuner_core::Knob;
use brokertuner_edge::agent::Report;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    date_time_ymd,
};

use super::broker::{Broker, start_with_tls};
use super::cli::{edge, ended, on};
use super::model;

const WANTED: [(Knob, u64); 1] = [(Knob::AutosaveInterval, 100)];
/// In the broker's certificate, and nowhere in the resolver.
const NAME: &str = "gateway.example";

/// A certificate authority and what it signs, as PEM files in a directory.
struct Ca {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

fn named(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params
}

impl Ca {
    fn new(dir: &Path, name: &str) -> Self {
        let dir = dir.join(name);
        fs::create_dir(&dir).unwrap();
        let mut params = named(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        fs::write(dir.join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { dir, issuer: Issuer::new(params, key) }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Writes NAME.pem and NAME.key.
    fn sign(&self, name: &str, mut params: CertificateParams, is_expired: bool) {
        if is_expired {
            (params.not_before, params.not_after) =
                (date_time_ymd(2001, 1, 1), date_time_ymd(2002, 1, 1));
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(self.file(&format!("{name}.pem")), certificate.pem()).unwrap();
        fs::write(self.file(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    fn server(&self, name: &str, is_expired: bool) {
        let mut params = named(NAME);
        params.subject_alt_names = vec![rcgen::SanType::DnsName(NAME.try_into().unwrap())];
        self.sign(name, params, is_expired);
    }

    /// The lines of a TLS listener with the certificate of that name.
    fn listener(&self, name: &str) -> String {
        let file = |ending: &str| self.file(&format!("{name}.{ending}")).display().to_string();
        format!("certfile {}\nkeyfile {}\n", file("pem"), file("key"))
    }
}

/// A broker, its CA, and the agent's configuration for it.
struct Site {
    _dir: tempfile::TempDir,
    ca: Ca,
    broker: Broker,
}

impl Site {
    /// `certificate` is `server` or `expired`; `extra` goes into the broker's main file.
    fn start(certificate: &str, extra: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::new(dir.path(), "ca");
        ca.server("server", false);
        ca.server("expired", true);
        ca.sign("agent", named("agent"), false);
        let extra = extra.replace("CA", &ca.file("ca.pem").display().to_string());
        let broker = start_with_tls(&format!("{}{extra}", ca.listener(certificate)));
        model::write(&broker.path("model.btm"), &WANTED);
        Self { _dir: dir, ca, broker }
    }

    /// `edge once`, with these lines in `[broker]`.
    fn once(&self, lines: &str) -> (i32, String, String) {
        on(&self.config(lines), &["once", "--json"])
    }

    fn config(&self, lines: &str) -> PathBuf {
        let extra = "[decide]\ninterval_ms = 250\nverify_window_s = 1\n";
        let config = self.broker.edge_config(&self.broker.path("model.btm"), extra);
        let text = fs::read_to_string(&config).unwrap();
        let lines = lines.replace("DIR", &self.ca.dir.display().to_string());
        fs::write(&config, text.replace("[broker]\n", &format!("[broker]\n{lines}"))).unwrap();
        config
    }

    fn changes(&self, lines: &str) {
        let (code, out, err) = self.once(lines);
        let report: Report = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {err}"));
        assert_eq!((code, report.verdict.kind.as_str()), (0, "changed"), "{err}");
        assert!(self.broker.drop_in().exists());
    }

    fn refuses(&self, lines: &str, remedy: &str) {
        let (code, out, err) = self.once(lines);
        assert!(code == 2 && err.contains(remedy), "exit {code}: {out}{err}");
        assert!(!self.broker.drop_in().exists());
    }
}

const TLS: &str = "ca_file = \"DIR/ca.pem\"\ntls_name = \"gateway.example\"\n";

#[test]
fn the_broker_is_verified_and_tuned_by_tls() {
    let site = Site::start("server", "");
    let other = Ca::new(site.ca.dir.parent().unwrap(), "other");
    let wrong = TLS.replace("DIR", &other.dir.display().to_string());
    site.refuses(&wrong, "is not signed by broker.ca_file");
    site.refuses("ca_file = \"DIR/ca.pem\"\n", "set broker.tls_name");
    site.refuses("ca_file = \"DIR/none.pem\"\n", "broker.ca_file: cannot read");
    site.refuses("ca_file = \"DIR/server.key\"\n", "no certificate in it");
    site.refuses("", "the broker at ");
    site.changes(TLS);
}

#[test]
fn an_expired_certificate_is_refused() {
    let site = Site::start("expired", "");
    site.refuses(TLS, "its certificate has expired");
}

#[test]
fn a_plain_port_is_no_tls_port() {
    let site = Site::start("server", "");
    let plain = Broker::start("");
    let lines = TLS.replace("DIR", &site.ca.dir.display().to_string());
    model::write(&plain.path("model.btm"), &WANTED);
    let extra = "[decide]\ninterval_ms = 250\nverify_window_s = 1\n";
    let config = plain.edge_config(&plain.path("model.btm"), extra);
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("[broker]\n", &format!("[broker]\n{lines}"))).unwrap();
    let (code, _, err) = on(&config, &["once"]);
    assert!(code == 2 && err.contains("the broker at "), "{code}: {err}");
    assert!(!plain.drop_in().exists(), "{err}");
    fs::write(&config, text).unwrap();
    let (code, out, err) = on(&config, &["once"]);
    assert_eq!(code, 0, "it is the TLS that does not fit: {out}{err}");
}

#[test]
fn a_client_certificate_is_shown_where_one_is_demanded() {
    let site = Site::start("server", "cafile CA\nrequire_certificate true\n");
    site.refuses(TLS, "set broker.cert_file and broker.key_file");
    let with = |cert: &str, key: &str| {
        format!("{TLS}cert_file = \"DIR/{cert}\"\nkey_file = \"DIR/{key}\"\n")
    };
    site.refuses(&with("agent.pem", "agent.pem"), "no private key in it");
    site.refuses(&with("agent.pem", "server.key"), "broker.key_file: ");
    site.changes(&with("agent.pem", "agent.key"));
}

#[test]
fn a_password_comes_from_a_file_or_a_credential_and_is_never_shown() {
    let dir = tempfile::tempdir().unwrap();
    let passwords = dir.path().join("passwords");
    let made = Command::new("mosquitto_passwd")
        .args(["-b", "-c", passwords.to_str().unwrap(), "tuner", "s3cret"])
        .status();
    assert!(made.is_ok_and(|made| made.success()), "sudo apt-get install -y mosquitto");
    fs::set_permissions(&passwords, fs::Permissions::from_mode(0o600)).unwrap();
    let site = Site::start(
        "server",
        &format!("allow_anonymous false\npassword_file {}\n", passwords.display()),
    );
    fs::write(site.ca.file("user"), "tuner\n").unwrap();
    fs::write(site.ca.file("right"), "s3cret\n").unwrap();
    fs::write(site.ca.file("wrong"), "secret\n").unwrap();
    let with =
        |password: &str| format!("{TLS}user_file = \"DIR/user\"\npassword_file = \"{password}\"\n");
    site.refuses(TLS, "refuses the login");
    site.refuses(&with("DIR/wrong"), "refuses the login");
    site.refuses(&with("credential:right"), "start it by systemd with LoadCredential=right:FILE");

    let config = site.config(&with("credential:right"));
    let mut once = edge(&["once", "--config", config.to_str().unwrap()]);
    once.env("CREDENTIALS_DIRECTORY", &site.ca.dir).env("RUST_LOG", "trace");
    let (code, out, err) = ended(&once.output().unwrap());
    assert!(code == 0 && out.contains("changed: "), "{out}{err}");
    assert!(!out.contains("s3cret") && !err.contains("s3cret"), "the password is told");
}
