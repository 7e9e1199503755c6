//! Verbs that need no agent.

use std::fs;

use crate::support::{moa, run};

#[test]
fn a_good_file_is_valid() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("moa.toml");
    fs::write(&file, "[services.'/a']\ninstances = ['10.0.0.1:1']\n").expect("written");
    let file = file.to_str().expect("text");
    let outcome = run(&mut moa(&["config", "check", file]));
    assert_eq!((outcome.code, outcome.stdout), (Some(0), format!("{file} is valid: 1 services\n")));
    let json = run(&mut moa(&["config", "check", "--json", file])).json();
    assert_eq!((&json["valid"], &json["problems"]), (&true.into(), &serde_json::json!([])));
}

#[test]
fn a_bad_file_is_shown_with_all_its_problems() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("moa.toml");
    fs::write(&file, "[metrics]\nlisten = 7\nlisen = 1\n").expect("written");
    let file = file.to_str().expect("text");
    let outcome = run(&mut moa(&["config", "check", file]));
    let expected = format!(
        "{file}:2:10: metrics.listen: found the number 7, expected an IP address with a port
  |
2 | listen = 7
  |          ^

{file}:3:1: metrics.lisen: found the unknown key `lisen`, expected listen; did you mean `listen`?
  |
3 | lisen = 1
  | ^^^^^

{file} has 2 problems
"
    );
    assert_eq!((outcome.code, outcome.stderr.as_str(), outcome.stdout.as_str()), (Some(1), expected.as_str(), ""));
    let json = run(&mut moa(&["config", "check", "--json", file])).json();
    assert_eq!(
        (&json["valid"], &json["problems"][1]["line"], &json["problems"][1]["key"]),
        (&false.into(), &3.into(), &"metrics.lisen".into())
    );
}

#[test]
fn the_default_file_and_the_schema_are_what_the_check_takes() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("moa.toml");
    fs::write(&file, run(&mut moa(&["config", "default"])).stdout).expect("written");
    assert_eq!(run(moa(&["config", "check"]).env("MOA_CONFIG", &file)).code, Some(0));
    let schema = run(&mut moa(&["config", "schema"])).json();
    assert_eq!(schema["properties"]["app"]["properties"]["listen"]["default"], "127.0.0.1:13000");
}

#[test]
fn the_reference_is_put_between_its_marks() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("doc.md");
    let marks = ["<!-- made by `moa config reference`: begin -->", "<!-- made by `moa config reference`: end -->"];
    fs::write(&file, format!("before\n{}\nold\n{}\nafter\n", marks[0], marks[1])).expect("written");
    assert_eq!(run(moa(&["config", "reference", "--write"]).arg(&file)).code, Some(0));
    let document = fs::read_to_string(&file).expect("written");
    let reference = run(&mut moa(&["config", "reference"])).stdout;
    assert_eq!(document, format!("before\n{}\n\n{reference}\n{}\nafter\n", marks[0], marks[1]));
    fs::write(&file, "no marks").expect("written");
    let outcome = run(moa(&["config", "reference", "--write"]).arg(&file));
    assert!(outcome.code == Some(1) && outcome.stderr.contains("lacks the marks"), "{outcome:?}");
}

#[test]
fn a_wrong_command_line_ends_with_2_and_says_what_is_right() {
    let cases: [(&[&str], &str); 8] = [
        (&["frobnicate"], "unrecognized subcommand"),
        (&["agent", "--kernel", "maybe"], "[possible values: auto, on, off]"),
        (&["status", "--name", "Not_A_Name"], "1 to 32 lower-case letters"),
        (&["call", "/service/demo", "echo", "hi"], "the arguments are a JSON array"),
        (&["call", "/service/demo", "echo", "7"], "write '[7]'"),
        (&["call", "/service/demo"], "no METHOD of /service/demo is named"),
        (&["call", "demo", "echo"], "begins with `/`"),
        (&["call", "/service/demo", "echo", "--prop", "x"], "write KEY=VALUE"),
    ];
    for (words, says) in cases {
        let outcome = run(&mut moa(words));
        assert!(outcome.code == Some(2) && outcome.stderr.contains(says) && outcome.stdout.is_empty(), "{words:?}: {outcome:?}");
    }
}

#[test]
fn verbs_without_an_agent_name_the_socket_and_what_to_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let run_dir = folder.path().to_str().expect("text");
    for verb in [&["status"][..], &["services"], &["conns"], &["config", "show"], &["config", "reload"], &["call", "/a", "m"]] {
        let outcome = run(moa(verb).args(["--name", "gone", "--run-dir", run_dir]));
        let expected =
            format!("error: no agent named gone runs: nobody listens on {run_dir}/gone/agent.sock; start it by `moa agent`\n");
        assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(1), expected.as_str()), "{verb:?}");
        let outcome = run(moa(verb).args(["--json", "--name", "gone", "--run-dir", run_dir]));
        assert!(outcome.stderr.starts_with("{\"error\":\"no agent named gone"), "{verb:?}: {outcome:?}");
    }
}

#[test]
fn the_doctor_looks_at_everything_and_fails_only_for_failures() {
    let folder = tempfile::tempdir().expect("a folder");
    let run_dir = folder.path().to_str().expect("text");
    let outcome = run(&mut moa(&["doctor", "--json", "--run-dir", run_dir]));
    let checks = outcome.json();
    let checks = checks.as_array().expect("a list");
    let find =
        |name: &str| checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("nothing of {name}: {checks:?}"));
    assert_eq!(find("agent")["outcome"], "warn");
    assert!(checks.iter().all(|check| check["outcome"] == "ok" || check["mend"].is_string()), "{checks:?}");
    let failed = checks.iter().any(|check| check["outcome"] == "fail");
    assert_eq!(outcome.code, Some(i32::from(failed)));
    let text = run(&mut moa(&["doctor", "--run-dir", run_dir])).stdout;
    assert!(text.contains("agent") && text.contains("→ start it by `moa agent`") && !text.contains('\x1b'), "{text}");
}

#[test]
fn the_doctor_fails_for_a_bad_configuration() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("moa.toml");
    fs::write(&file, "[app]\nlisten = 7\n").expect("written");
    let outcome = run(moa(&["doctor", "--config"]).arg(&file).args(["--run-dir"]).arg(folder.path()));
    assert!(outcome.code == Some(1) && outcome.stdout.contains(":2:10: app.listen:"), "{outcome:?}");
}

#[test]
fn completions_and_manual_pages_know_the_verbs() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&mut moa(&["completions", shell])).stdout;
        assert!(script.contains("services") && script.contains("doctor"), "{shell}: {script}");
    }
    let folder = tempfile::tempdir().expect("a folder");
    assert_eq!(run(moa(&["man"]).arg(folder.path().join("man1"))).code, Some(0));
    for page in ["moa.1", "moa-agent.1", "moa-config-check.1"] {
        let page = fs::read_to_string(folder.path().join("man1").join(page)).unwrap_or_else(|error| panic!("{page}: {error}"));
        assert!(page.contains(".SH"), "{page}");
    }
}
