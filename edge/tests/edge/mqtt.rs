//! MQTT 3.1.1: where it is asked for, and where the broker refuses 5.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;

use brokertuner_core::Knob;
use brokertuner_edge::agent::Report;
use brokertuner_edge::control::Broker as _;
use brokertuner_edge::mqtt::{Protocol, ProtocolChoice};
use brokertuner_edge::sampler::{Link, Sampler, SysStatus};

use super::broker::{Broker, eventually};
use super::cli::on;
use super::model;
use super::sampler::sampler_at;

const WINDOW: u16 = 600;
/// The CONNACK of a broker that knows no MQTT 5.
const REFUSED: [u8; 4] = [0x20, 2, 0, 1];
/// Where CONNECT has the version, behind a length of one byte and `MQTT`.
const LEVEL_AT: usize = 8;

/// Stands in front of a broker for one without MQTT 5: refuses that, and passes 3.1.1 on.
fn without_mqtt_5(broker: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { return };
            thread::spawn(move || {
                // Either side may go whenever it likes.
                let _ = pass_on(stream, broker);
            });
        }
    });
    address
}

fn pass_on(mut client: TcpStream, broker: SocketAddr) -> io::Result<()> {
    let mut packet = [0; 256];
    let length = client.read(&mut packet)?;
    if packet[LEVEL_AT] == 5 {
        return client.write_all(&REFUSED);
    }
    let mut server = TcpStream::connect(broker)?;
    server.write_all(&packet[..length])?;
    let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
    thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        to.shutdown(Shutdown::Both)
    });
    io::copy(&mut server, &mut client)?;
    client.shutdown(Shutdown::Both)
}

fn sampler(broker: &Broker, address: SocketAddr, mqtt: ProtocolChoice) -> Sampler {
    sampler_at(broker, address, None, mqtt)
}

#[test]
fn a_broker_that_refuses_5_is_sampled_by_3_1_1() {
    let broker = Broker::start("");
    let address = without_mqtt_5(broker.address);
    let mut auto = sampler(&broker, address, ProtocolChoice::Auto);
    eventually("$SYS and both probes", || {
        let probe = auto.sample().probe;
        let is_probed = probe.latency_us_qos0.is_some() || probe.latency_us_qos1.is_some();
        (auto.sys_status() == SysStatus::Flowing && is_probed).then_some(())
    });
    assert_eq!((auto.link(), auto.protocol()), (Link::Up, Some(Protocol::V311)));

    let only_5 = sampler(&broker, address, ProtocolChoice::V5);
    eventually("the refusal", || match only_5.link() {
        Link::Lost(reason) if reason.contains("set broker.mqtt to") => Some(()),
        _ => None,
    });

    let mut live = broker.live();
    live.address = address;
    let connack = live.answer().unwrap();
    assert!(connack.accepted() && !connack.shows_limits(), "{connack:?}");
}

#[test]
fn tuned_by_3_1_1_it_says_that_nothing_is_read_back() {
    let broker = Broker::start("");
    let file = broker.path("model.btm");
    model::write(&file, &[(Knob::InflightMessagesMax, WINDOW.into())]);
    let config = broker.edge_config(&file, "[decide]\ninterval_ms = 250\nverify_window_s = 1\n");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("[broker]\n", "[broker]\nmqtt = \"3.1.1\"\n")).unwrap();
    let (code, out, err) = on(&config, &["once", "--json"]);
    let report: Report = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {err}"));
    assert_eq!((code, report.verdict.kind.as_str()), (0, "changed"), "{out}{err}");
    assert_eq!(report.broker.mqtt, Some(Protocol::V311));
    assert!(report.to_string().contains("can't be read back"), "{report}");
    // Asked by 5, the broker shows that it has the new window all the same.
    let shown = eventually("an answer", || broker.live().answer().ok()).receive_maximum;
    let wanted = report.options[Knob::InflightMessagesMax as usize].effective;
    assert_eq!(shown.map(u64::from), wanted);
    assert!(wanted.is_some_and(|window| window > 100), "{wanted:?}");

    let (_, out, _) = on(&config, &["doctor"]);
    assert!(out.contains("can't be read back"), "{out}");
}
