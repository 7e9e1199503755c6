//! What the programs add to a connect.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use socket2::{SockRef, Socket};

use super::bed::{Bed, alone, at, listen, nobody};

const ROUNDS: usize = 15;
const CONNECTS: u32 = 2_000;

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Connects, is accepted, and is reset, so that nothing of it stays.
fn round(to: SocketAddr, listener: &TcpListener) -> Duration {
    let begun = Instant::now();
    for _ in 0..CONNECTS {
        let client = TcpStream::connect(to).unwrap();
        SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        drop(listener.accept().unwrap());
    }
    begun.elapsed() / CONNECTS
}

fn show(bed: &Bed, what: &str) {
    for program in bed.kernel.describe().unwrap().programs {
        if program.runs > 0 {
            println!("{what}: {}: {} runs, {} ns each", program.name, program.runs, program.run_ns / program.runs);
        }
    }
}

#[test]
#[ignore = "a measurement, which proves nothing: run it alone, with --nocapture"]
fn a_connect_with_and_without() {
    alone(|| {
        fs::write("/proc/sys/kernel/bpf_stats_enabled", "0").unwrap();
        let (plain, sibling) = (listen("127.0.0.1:0"), listen("127.0.0.1:0"));
        let mut times: [Vec<Duration>; 4] = Default::default();
        for _ in 0..ROUNDS {
            times[0].push(round(at(&plain), &plain));
            let bed = Bed::new(None);
            bed.hooks.set_workers(2);
            bed.hooks.set_stale(Duration::from_secs(60));
            bed.pulse.beat(0);
            bed.pulse.beat(1);
            times[1].push(round(at(&plain), &plain));
            let agent = bed.agent("127.0.0.1:0");
            bed.gate(at(&agent), &[at(&sibling)]);
            // As the path is on the way of the accepted connection too.
            bed.kernel.turn_off();
            times[2].push(round(at(&agent), &agent));
            let gate = nobody("127.0.0.2");
            bed.gate(gate, &[at(&sibling)]);
            times[3].push(round(gate, &sibling));
        }
        let [without, no_gate, local, diverted] = times.map(median);
        println!(
            "a connect: {without:?} without, {no_gate:?} to where no gate is, {local:?} to the agent, {diverted:?} diverted"
        );
        fs::write("/proc/sys/kernel/bpf_stats_enabled", "1").unwrap();
        let workers = [1, 2, 64];
        for workers in workers {
            let bed = Bed::new(None);
            bed.hooks.set_workers(workers);
            bed.hooks.set_stale(Duration::from_secs(60));
            (0..workers).for_each(|worker| bed.pulse.beat(worker));
            let agent = bed.agent("127.0.0.1:0");
            bed.gate(at(&agent), &[at(&sibling)]);
            round(at(&agent), &agent);
            show(&bed, &format!("to the agent, {workers} workers"));
        }
        let bed = Bed::new(None);
        round(at(&plain), &plain);
        show(&bed, "no gate");
        let bed = Bed::new(None);
        let gate = nobody("127.0.0.2");
        bed.gate(gate, &[at(&sibling)]);
        round(gate, &sibling);
        let client: Socket = TcpStream::connect(gate).unwrap().into();
        for _ in 0..CONNECTS {
            client.peer_addr().unwrap();
        }
        show(&bed, "diverted");
        fs::write("/proc/sys/kernel/bpf_stats_enabled", "0").unwrap();
    });
}
