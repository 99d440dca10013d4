//! Faults of the model, and of what it wants.

use std::fs;
use std::time::{Duration, Instant};

use brokertuner_core::model::{LayerParts, Model};
use brokertuner_core::{KNOBS, Knob};
use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg64Mcg;

use super::site::Site;
use super::{Holds, ROW, Row};
use crate::support::edge::model;
use crate::support::mqtt::{Client, Level};
use crate::support::wait_for;

pub(super) static ROWS: &[Row] = &[
    Row {
        name: "no fault",
        fault: Site::tune,
        says: &["The change stood its verification."],
        ..ROW
    },
    Row {
        name: "a model of random weights, all options opted in",
        fault: random_weights,
        says: &["Changing the broker's settings."],
        ..ROW
    },
    Row {
        name: "a memory_limit that is too low for the broker, wanted by a hostile model",
        config: "[knobs.memory_limit]\ntune = \"yes\"\n",
        fault: low_memory_limit,
        says: &["memory_limit"],
        ..ROW
    },
    Row {
        name: "a packet size and a message size that are too small, wanted by a hostile model",
        config: "[knobs.max_packet_size]\ntune = \"yes\"\n[knobs.message_size_limit]\ntune = \"yes\"\n",
        fault: |site| {
            let sizes = [(Knob::PacketSizeMax, 65_536), (Knob::MessageSizeMax, 65_536)];
            model::write(&site.config.model, &sizes);
            let large = vec![b'x'; 120_000];
            let mut sender = Client::connect(site.broker.addr(), Level::V311, "sender");
            site.start_agent();
            let mut due = Instant::now();
            wait_for("a change", || {
                if Instant::now() >= due {
                    sender.publish("large", &large, 0, 0);
                    due += Duration::from_millis(100);
                }
                site.log().contains("Changed.").then_some(())
            });
            // No limit of the agent's may turn the sender away.
            let mut sender = wait_for("the broker after its restart", || {
                Client::open(site.broker.addr(), Level::V5, "sender", true).ok()
            });
            sender.publish("large", &large, 1, 1);
            let (_, body) = sender.receive_kind(0x40);
            assert!(body.len() == 2 || body[2] < 0x80, "refused: {body:?}");
        },
        says: &["Changed."],
        ..ROW
    },
    Row {
        name: "a truncated model",
        fault: |site| {
            let bytes = fs::read(&site.config.model).unwrap();
            fs::write(&site.config.model, &bytes[..bytes.len() - 7]).unwrap();
            assert_eq!(site.run_edge(&["run"]), 2);
        },
        says: &["copy it again"],
        ..ROW
    },
    Row {
        name: "a model with a bit flipped",
        fault: |site| {
            let mut bytes = fs::read(&site.config.model).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x10;
            fs::write(&site.config.model, bytes).unwrap();
            assert_eq!(site.run_edge(&["run"]), 2);
        },
        says: &["damaged"],
        ..ROW
    },
    Row {
        name: "a truncated model put under the running agent",
        fault: |site| {
            site.tune();
            let bytes = fs::read(&site.config.model).unwrap();
            let aside = site.path("aside.btm");
            fs::write(&aside, &bytes[..bytes.len() / 2]).unwrap();
            fs::rename(aside, &site.config.model).unwrap();
            site.until_said("The new model was refused");
            site.until_tuned();
        },
        says: &["The new model was refused; the one in use stays."],
        ..ROW
    },
    Row {
        name: "the model gone at the next start",
        fault: |site| {
            site.tune();
            site.stop_agent();
            fs::remove_file(&site.config.model).unwrap();
            site.start_agent();
            // Before that a signal ends it as it ends any process.
            wait_for("its second start", || {
                (site.log().matches("Started.").count() == 2).then_some(())
            });
        },
        says: &["The model was refused; the one that was accepted before is in use."],
        ..ROW
    },
    Row {
        name: "quiet hours all day",
        fault: |site| {
            site.replace(
                "[decide]\n",
                "[decide]\nquiet_hours = [\"00:00-12:00\", \"12:00-00:00\"]\n",
            );
            assert_no_restart(site);
        },
        says: &["quiet hours: no restart now"],
        ..ROW
    },
    Row {
        name: "no restarts permitted",
        fault: |site| {
            site.replace("restarts_per_hour_max = 32", "restarts_per_hour_max = 0");
            assert_no_restart(site);
        },
        says: &["the restart budget of this hour is used up"],
        ..ROW
    },
    Row {
        name: "a request for QoS 0 queues without a memory limit, and nothing to lose",
        holds: Holds::Nothing,
        config: "[knobs.queue_qos0_messages]\ntune = \"yes\"\n",
        fault: |site| {
            model::write(&site.config.model, &[(Knob::QueueQos0, 1), (Knob::TcpNodelay, 1)]);
            site.start_agent();
            site.until_said("Changed.");
            let text = fs::read_to_string(&site.config.drop_in).unwrap();
            assert!(!text.contains("queue_qos0_messages true"), "{text}");
        },
        says: &["Changed."],
        ..ROW
    },
];

fn assert_no_restart(site: &mut Site) {
    site.start_agent();
    // What reloads goes on.
    site.until("a reload", |report| {
        report.options[Knob::AutosaveInterval as usize].effective.is_some()
    });
    site.until("the window to be wanted in vain", |report| {
        report.verdict.kind == "hold" && report.options[0].wanted.is_some()
    });
    assert_eq!(site.broker.start_count(), 1);
}

/// Another model: its window is far from the first one's.
pub(super) fn want_less(site: &Site) {
    let less = [(Knob::InflightMessagesMax, 20), (Knob::QueuedMessagesMax, 200)];
    model::write(&site.config.model, &less);
}

/// Every answer another one, and as many restarts as there is room for.
fn random_weights(site: &mut Site) {
    for spec in &KNOBS {
        site.config.extra += &format!("[knobs.{}]\ntune = \"yes\"\n", spec.key);
    }
    let plain = fs::read(&site.config.model).unwrap();
    let parts = *Model::parse(&plain).unwrap().parts();
    let mut rng = Pcg64Mcg::seed_from_u64(7);
    let mut weights = |like: &[u8]| -> Vec<u8> {
        like.iter().map(|_| i8::to_le_bytes(rng.random_range(-127..=127))[0]).collect()
    };
    let layers = parts.layers.map(|layer| weights(layer.weights));
    let ones = 1f32.to_le_bytes().repeat(parts.input.inv_std.len() / 4);
    let mut random = parts;
    for (layer, weights) in random.layers.iter_mut().zip(&layers) {
        *layer = LayerParts { weights, ..*layer };
    }
    random.input.inv_std = &ones;
    let mut bytes = vec![0; 64 * 1024];
    let length = Model::new(random).unwrap().write(&mut bytes).unwrap();
    fs::write(&site.config.model, &bytes[..length]).unwrap();
    site.replace("[agent]", "hold_beyond_training = false\n[agent]");
    site.start_agent();
    let changes = || site.log().matches("Changing the broker's settings.").count();
    // Its inputs change with each of its own changes, for a while.
    wait_for("some of its answers", || (changes() >= 1).then_some(()));
    site.until("an end of it", |report| {
        let why = &report.verdict.why;
        ["fit", "failed", "lose"].iter().any(|word| why.contains(word)) || report.decisions >= 6
    });
}

/// The smallest limit of the table, over a heap that it is too low for.
fn low_memory_limit(site: &mut Site) {
    let least = Knob::MemoryLimit.spec().min;
    model::write(&site.config.model, &[(Knob::MemoryLimit, least)]);
    let mut filler = Client::connect(site.broker.addr(), Level::V311, "filler");
    for index in 0..u64::from(u16::MAX) {
        // Beyond half of the limit, which is what the envelope demands as headroom.
        if index * 200_000 > least * 3 / 4 {
            break;
        }
        filler.publish_retained(&format!("fill/{index}"), &vec![b'x'; 200_000]);
    }
    filler.receive_until_ping();
    site.start_agent();
    site.until_said("Changed.");
    let text = fs::read_to_string(&site.config.drop_in).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("memory_limit "));
    let limit: u64 = line.expect("a memory_limit").parse().unwrap();
    assert!(limit == 0 || limit > least, "{limit}");
}
