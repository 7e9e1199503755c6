//! How long a call takes, directly and routed.

use std::{
    fs,
    net::{Shutdown, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use super::bed::{BOUND, Whole, bytes, echo, in_bed, request};

const ROUNDS: usize = 5;
const CALLS: u32 = 20_000;

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn round(app: &TcpStream, size: usize) -> Duration {
    let body = bytes(1, size);
    let mut receipt = 0;
    let times = (1..=CALLS).map(|stream| {
        let mut call = request(stream, body.clone());
        call.header.receipt = receipt;
        let begun = Instant::now();
        call.send(app);
        let answer = Whole::read(app);
        receipt = answer.header.receipt;
        begun.elapsed()
    });
    median(times.collect())
}

#[test]
#[ignore = "a measurement, which proves nothing: run it alone, with --nocapture"]
fn direct_and_routed() {
    in_bed(BOUND, |bed| {
        let mut one = CpuSet::new();
        one.set(0).unwrap();
        sched_setaffinity(Pid::from_raw(0), &one).unwrap();
        fs::write("/proc/sys/kernel/bpf_stats_enabled", "1").unwrap();
        let (caller, callee) = (bed.app(1), bed.app(2));
        bed.route(&[&callee]);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let direct = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (served, _) = listener.accept().unwrap();
        for end in [&direct, &served] {
            end.set_nodelay(true).unwrap();
        }
        let echoes = [echo(&callee.app), echo(&served)];
        for size in [64, 1024, 16 * 1024] {
            let mut times = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                times.0.push(round(&direct, size));
                times.1.push(round(&caller.app, size));
            }
            println!("{size:>6} B: direct {:?}, routed {:?}", median(times.0), median(times.1));
        }
        fs::write("/proc/sys/kernel/bpf_stats_enabled", "0").unwrap();
        for program in bed.kernel.describe().unwrap().programs {
            let each = program.run_ns.checked_div(program.runs).unwrap_or(0);
            println!("{}: {} runs, {each} ns each", program.name, program.runs);
        }
        println!("{:?}", bed.lanes.routed().unwrap());
        drop((callee.app.shutdown(Shutdown::Both), direct.shutdown(Shutdown::Both)));
        for echo in echoes {
            echo.join().unwrap();
        }
    });
}
