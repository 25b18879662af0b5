use super::{Node, node};
use bytes::Bytes;
use rustix::process::{Pid, test_kill_process};
use std::time::Duration;
use stead_agent::{Event, ExecOutput};
use stead_model::{
    Failure,
    agent::{ExecExit, ExecRequest, Size},
};
use stead_testkit::wait::eventually_async;

/// Time limit for any output.
const PATIENCE: Duration = Duration::from_secs(60);

fn request(command: &[&str]) -> ExecRequest {
    ExecRequest {
        command: command.iter().map(|s| (*s).to_owned()).collect(),
        environment: Default::default(),
        cwd: None,
        tty: None,
    }
}

struct Heard {
    stdout: String,
    stderr: String,
    exit: ExecExit,
}

/// Waits for output that begins with this. A terminal's lines arrive in any number of pieces.
async fn begins_with(output: &mut ExecOutput, want: &str) {
    let mut said = Vec::new();
    while said.len() < want.len() {
        let next = tokio::time::timeout(PATIENCE, output.next()).await.expect("it begins");
        match next.unwrap() {
            Some(Event::Stdout(piece)) => said.extend_from_slice(&piece),
            other => panic!("{other:?} after {said:?}"),
        }
    }
    assert_eq!(String::from_utf8(said).unwrap(), want);
}

async fn hear(output: &mut ExecOutput) -> Heard {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    loop {
        let next = tokio::time::timeout(PATIENCE, output.next()).await.expect("it goes on");
        match next.unwrap().unwrap() {
            Event::Stdout(data) => stdout.extend_from_slice(&data),
            Event::Stderr(data) => stderr.extend_from_slice(&data),
            Event::Exit(exit) => {
                assert_eq!(output.next().await.unwrap(), None);
                let text = |bytes| String::from_utf8(bytes).unwrap();
                return Heard { stdout: text(stdout), stderr: text(stderr), exit };
            }
        }
    }
}

async fn run(node: &Node, request: &ExecRequest) -> Heard {
    let mut session = node.client.exec(request).await.unwrap();
    session.input().close_stdin().await.unwrap();
    hear(session.output()).await
}

async fn sh(node: &Node, script: &str) -> Heard {
    run(node, &request(&["sh", "-c", script])).await
}

#[tokio::test]
async fn codes_come_through() {
    let node = node().await;
    for (script, code) in
        [("exit 0", 0), ("exit 3", 3), ("exit 255", 255), ("kill -TERM $$", 143), ("kill -9 $$", 137)]
    {
        assert_eq!(sh(&node, script).await.exit, ExecExit { code, error: None }, "{script}");
    }
}

#[tokio::test]
async fn a_command_that_cannot_run_gives_the_reason() {
    let node = node().await;
    let missing = run(&node, &request(&["no-such-command"])).await.exit;
    assert_eq!(missing, ExecExit { code: 127, error: Some("\"no-such-command\" not found".into()) });
    for refused in [
        request(&["/etc/passwd"]),
        request(&[]),
        ExecRequest { cwd: Some("/no/such".into()), ..request(&["true"]) },
        ExecRequest { environment: [("A=B".into(), "c".into())].into(), ..request(&["true"]) },
    ] {
        let exit = run(&node, &refused).await.exit;
        assert!(exit.code == 126 && exit.error.is_some(), "{refused:?}: {exit:?}");
    }
    let error = node.client.exec(&request(&["true", &"x".repeat(70_000)])).await.unwrap_err();
    assert!(error.is_bad_input() && error.hint().unwrap().contains("standard input"), "{error:?}");
    assert!(error.to_string().contains("bytes, more than 65536"), "{error}");
}

#[tokio::test]
async fn outputs_stay_apart_and_the_environment_is_minimal() {
    let node = node().await;
    let heard = sh(&node, "echo out; echo err >&2; exit 1").await;
    assert_eq!((heard.stdout.as_str(), heard.stderr.as_str(), heard.exit.code), ("out\n", "err\n", 1));
    let mut with = request(&["sh", "-c", "env | cut -d= -f1 | sort | tr '\\n' ' '; echo $A; pwd; umask"]);
    with.environment = [("A".to_owned(), "b c".to_owned())].into();
    with.cwd = Some("/usr".into());
    let heard = run(&node, &with).await;
    assert_eq!(heard.stdout, "A HOME LANG LOGNAME PATH PWD USER b c\n/usr\n0022\n");
}

#[tokio::test]
async fn five_mebibytes_go_through_cat_unchanged() {
    let node = node().await;
    let data: Vec<u8> = (0..5u32 << 18).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let (mut input, mut output) = node.client.exec(&request(&["cat"])).await.unwrap().split();
    let sent = Bytes::from(data.clone());
    let feed = tokio::spawn(async move {
        input.stdin(sent).await.unwrap();
        input.close_stdin().await.unwrap();
        input
    });
    let mut got = Vec::new();
    let exit = loop {
        match output.next().await.unwrap().unwrap() {
            Event::Stdout(data) => got.extend_from_slice(&data),
            Event::Exit(exit) => break exit,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(exit.code, 0);
    assert!(got == data, "{} of {} bytes, or others", got.len(), data.len());
    drop(feed.await.unwrap());
}

#[tokio::test]
async fn all_output_comes_before_the_exit_however_fast_it_ends() {
    let node = node().await;
    for _ in 0..20 {
        let heard = sh(&node, "head -c 60000 /dev/zero | tr '\\0' x; printf end >&2").await;
        assert_eq!((heard.stdout.len(), heard.stderr.as_str()), (60_000, "end"));
    }
}

#[tokio::test]
async fn a_command_that_does_not_read_its_input_still_ends() {
    let node = node().await;
    let (mut input, mut output) =
        node.client.exec(&request(&["sh", "-c", "head -c 1 >/dev/null; echo done"])).await.unwrap().split();
    let feed = tokio::spawn(async move {
        // Fails when the node closes; output sent before is still received.
        let _ = input.stdin(vec![b'x'; 5 << 20]).await;
    });
    let heard = hear(&mut output).await;
    assert_eq!((heard.stdout.as_str(), heard.exit.code), ("done\n", 0));
    drop(output);
    feed.await.unwrap();
}

#[tokio::test]
async fn background_processes_do_not_hold_the_client() {
    let node = node().await;
    let heard = sh(&node, "sleep 3600 & echo started").await;
    assert_eq!((heard.stdout.as_str(), heard.exit.code), ("started\n", 0));
    // Not even if they never stop writing.
    for tty in [None, Some(Size { rows: 24, columns: 80 })] {
        let talking =
            ExecRequest { tty, ..request(&["sh", "-c", "trap '' HUP; echo started; yes & exit 6"]) };
        let heard = hear(node.client.exec(&talking).await.unwrap().output()).await;
        assert!(heard.stdout.starts_with("started"), "{tty:?}");
        assert_eq!(heard.exit.code, 6, "{tty:?}");
    }
}

#[tokio::test]
async fn signals_reach_the_process_group() {
    let node = node().await;
    let (mut input, mut output) = node
        .client
        .exec(&request(&[
            "sh",
            "-c",
            "trap 'echo caught; exit 9' USR1; echo ready; while :; do sleep 0.05; done",
        ]))
        .await
        .unwrap()
        .split();
    assert_eq!(output.next().await.unwrap(), Some(Event::Stdout("ready\n".into())));
    // There is no signal of this number: nothing happens.
    input.signal(200).await.unwrap();
    input.signal(10).await.unwrap();
    let heard = hear(&mut output).await;
    // The group's sleep got the signal too and dies of it.
    assert!(heard.stdout.ends_with("caught\n"), "{:?}", heard.stdout);
    assert_eq!(heard.exit.code, 9);
}

#[tokio::test]
async fn a_command_ends_with_its_client() {
    let node = node().await;
    for (script, stdin) in [
        // Reads nothing, and the pipe is full: the node cannot read frames any more, but still notices.
        ("echo $$; exec sleep 1000", 5 << 20),
        // Ignores the hang-up, and so do its children.
        ("trap '' HUP; sleep 1000 & echo $!; wait", 0),
        ("echo $$; exec cat", 0),
    ] {
        let (mut input, mut output) =
            node.client.exec(&request(&["sh", "-c", script])).await.unwrap().split();
        let Some(Event::Stdout(pid)) = output.next().await.unwrap() else { panic!("no pid") };
        let pid = Pid::from_raw(std::str::from_utf8(&pid).unwrap().trim().parse().unwrap()).unwrap();
        let feed = tokio::spawn(async move { input.stdin(vec![0; stdin]).await });
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(test_kill_process(pid).is_ok());
        feed.abort();
        let _ = feed.await;
        drop(output);
        eventually_async(script, || {
            // A zombie of another parent has ended too.
            test_kill_process(pid).is_err()
                || std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()))
                    .map_or(true, |s| s.contains(") Z "))
        })
        .await;
    }
}

#[tokio::test]
async fn a_terminal_is_one() {
    let node = node().await;
    let mut tty = request(&["sh", "-c", "stty size; tty; echo err >&2; [ -t 0 ] && [ -t 1 ] && [ -t 2 ]"]);
    tty.tty = Some(Size { rows: 33, columns: 101 });
    let mut session = node.client.exec(&tty).await.unwrap();
    let heard = hear(session.output()).await;
    let lines: Vec<&str> = heard.stdout.lines().collect();
    assert_eq!(lines[0], "33 101", "{:?}", heard.stdout);
    assert!(lines[1].starts_with("/dev/pts/"), "{:?}", heard.stdout);
    assert_eq!((lines[2], heard.stderr.as_str(), heard.exit.code), ("err", "", 0));
}

#[tokio::test]
async fn a_terminal_resizes_interrupts_and_ends_its_input() {
    let node = node().await;
    let tty = |script: &str| ExecRequest {
        tty: Some(Size { rows: 24, columns: 80 }),
        ..request(&["sh", "-c", script])
    };
    let (mut input, mut output) = node
        .client
        .exec(&tty("trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.05; done"))
        .await
        .unwrap()
        .split();
    begins_with(&mut output, "ready\r\n").await;
    input.resize(Size { rows: 50, columns: 132 }).await.unwrap();
    let heard = hear(&mut output).await;
    assert_eq!((heard.stdout.as_str(), heard.exit.code), ("50 132\r\n", 0));

    // ^C typed; a signal sent; ^D by closing stdin.
    for how in 0..3 {
        // No `exec`: a shell interrupted right before it loses the interrupt.
        let script = match how {
            2 => "stty -echo; echo ready; cat; exit 5",
            _ => "echo ready; while :; do sleep 0.05; done",
        };
        let (mut input, mut output) = node.client.exec(&tty(script)).await.unwrap().split();
        begins_with(&mut output, "ready\r\n").await;
        match how {
            0 => input.stdin(&b"\x03"[..]).await.unwrap(),
            1 => input.signal(2).await.unwrap(),
            _ => input.close_stdin().await.unwrap(),
        }
        assert_eq!(hear(&mut output).await.exit.code, if how == 2 { 5 } else { 130 });
    }
}

#[tokio::test]
async fn commands_run_side_by_side_up_to_the_limit() {
    let node = node().await;
    let mut sessions = Vec::new();
    for n in 0..32 {
        let mut s =
            node.client.exec(&request(&["sh", "-c", &format!("echo {n}; cat; exit {n}")])).await.unwrap();
        assert_eq!(s.output().next().await.unwrap(), Some(Event::Stdout(format!("{n}\n").into())));
        sessions.push(s);
    }
    let error = node.client.exec(&request(&["true"])).await.unwrap_err();
    assert_eq!(super::code(&error), 503);
    for (n, mut s) in sessions.into_iter().enumerate().rev() {
        s.input().stdin(format!("hello {n}")).await.unwrap();
        s.input().close_stdin().await.unwrap();
        let heard = hear(s.output()).await;
        assert_eq!((heard.stdout, heard.exit.code), (format!("hello {n}"), n as i32));
    }
    // Their slots are free again once the node has seen them close.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(sh(&node, "exit 4").await.exit.code, 4);
}
