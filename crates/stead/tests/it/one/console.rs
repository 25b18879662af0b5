//! The console, with a stock VNC client and by the protocol itself.

use super::{alone, host::*};
use crate::common::eventually;
use std::{
    io::Write as _,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

/// Text on the screen of a VNC server, as the stock client Net::VNC sees it: each cell's pixels are looked up in the
/// font. `keys` are typed first, `\r` is Enter.
fn screenshot(cluster: &str, port: u16, password: &str, keys: &str, wait_s: u32) -> Result<String, String> {
    // Two colours a cell: what is not like the cell's upper left pixel is set. A letter never reaches that corner.
    let script = r#"
        my ($port, $password, $keys, $wait) = @ARGV;
        my $vnc = Net::VNC->new({hostname => "10.88.0.2", port => $port, password => $password});
        $vnc->depth(24);
        $vnc->login;
        for my $c (split //, $keys) { $vnc->send_key_event($c eq "\r" ? 0xff0d : ord $c) }
        sleep $wait;
        my $image = $vnc->capture;
        my ($w, $h) = ($image->width, $image->height);
        print "$w $h\n";
        for my $row (0 .. $h / 16 - 1) { for my $column (0 .. $w / 8 - 1) {
            my @corner = $image->query_pixel($column * 8, $row * 16);
            my $bits = "";
            for my $y (0 .. 15) { for my $x (0 .. 7) {
                my @pixel = $image->query_pixel($column * 8 + $x, $row * 16 + $y);
                $bits .= "@pixel[0..2]" eq "@corner[0..2]" ? "0" : "1";
            } }
            print "$bits\n";
        } }"#;
    let output = Command::new("ip")
        .args([
            "netns",
            "exec",
            &format!("stead-{cluster}"),
            "timeout",
            "60",
            "perl",
            "-MNet::VNC",
            "-e",
            script,
        ])
        .args([&port.to_string(), password, keys, &wait_s.to_string()])
        .output()
        .unwrap();
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines = text.lines();
    let size: Vec<usize> = lines.next().unwrap().split(' ').map(|n| n.parse().unwrap()).collect();
    let font = stead_one::console::screen::Font::default();
    let pattern = |c: char| -> String {
        let look =
            stead_one::console::screen::Look { character: c, foreground: 1, background: 0, underline: false };
        font.draw(&[look]).iter().map(|p| if *p == 1 { '1' } else { '0' }).collect()
    };
    let known: std::collections::HashMap<String, char> = (' '..='~').map(|c| (pattern(c), c)).collect();
    let cells: Vec<char> = lines.map(|l| known.get(l).copied().unwrap_or('\u{fffd}')).collect();
    let rows = cells.chunks(size[0] / 8).map(|r| r.iter().collect::<String>().trim_end().to_owned());
    Ok(format!("{}x{}\n{}", size[0], size[1], rows.collect::<Vec<_>>().join("\n").trim_end()))
}

/// Speaks the protocol by hand, for what the stock client cannot: to pick a security type that was not offered, and to ask
/// for another size.
fn raw_vnc(cluster: &str, port: u16, says: &[u8]) -> Vec<u8> {
    let script = r#"use IO::Socket::INET; my ($port) = @ARGV; local $/; my $say = <STDIN>;
        my $s = IO::Socket::INET->new(PeerAddr => "10.88.0.2", PeerPort => $port, Timeout => 5) or exit 3;
        my $got = ""; my $piece;
        my @parts = unpack("(n/a)*", $say);
        my $asks = @parts && $parts[-1] eq "";
        for my $part (@parts) {
            my $r = ""; vec($r, fileno($s), 1) = 1;
            sysread($s, $piece, 65536) and $got .= $piece if select($r, undef, undef, 2);
            syswrite($s, $part);
        }
        while (1) { my $r = ""; vec($r, fileno($s), 1) = 1; last unless select($r, undef, undef, $asks ? 6 : 2);
            last unless sysread($s, $piece, 65536); $got .= $piece;
            syswrite($s, pack("CCnnnn", 3, 1, 0, 0, 65535, 65535)) if $asks; }
        binmode STDOUT; print $got;"#;
    let mut child = Command::new("ip")
        .args(["netns", "exec", &format!("stead-{cluster}"), "perl", "-e", script, &port.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(says).unwrap();
    child.wait_with_output().unwrap().stdout
}

/// Messages, each sent after something was heard. With an empty one at the end more is asked for as long as it comes.
fn messages(parts: &[&[u8]]) -> Vec<u8> {
    parts.iter().flat_map(|p| [&(p.len() as u16).to_be_bytes()[..], p].concat()).collect()
}

#[test]
fn a_console_for_a_stock_vnc_client() {
    let _alone = alone();
    let perl = Command::new("perl").args(["-MNet::VNC", "-e", "1"]).output();
    if !perl.is_ok_and(|o| o.status.success()) {
        println!("SKIP a_console_for_a_stock_vnc_client: perl's Net::VNC is not installed");
        return;
    }
    with_host("a_console_for_a_stock_vnc_client", "one-vnc", "incus", "6.6.0", |host| {
        host.run(
            &["sh", "-c", "cat >/var/tmp/one/etc/vmm/incus/lxdrc"],
            ":vnc:\n  :command: /bin/sh\n  :width: 640\n  :height: 400\n  :timeout: 6\n",
        );
        host.prepare(7);
        let graphics = "<GRAPHICS><TYPE>vnc</TYPE><PORT>5907</PORT><PASSWD>secret</PASSWD></GRAPHICS>";
        let open = "<GRAPHICS><TYPE>vnc</TYPE><PORT>5907</PORT></GRAPHICS>";
        let deploy = ["/x", "host", "7", "host"];
        let of_one7 = ["one-7", "host", "7", "host"];
        // Without a password the VM runs, but nobody can look.
        let answer = host.call("deploy", &deploy, Some(&vm(7, "", open, "")));
        assert!(answer.code == 0 && answer.stderr.contains("without a password"), "{}", answer.stderr);
        assert!(screenshot("one-vnc", 5907, "", "", 0).is_err());
        host.done("cancel", &of_one7, None);

        host.done("deploy", &deploy, Some(&vm(7, "", graphics, "")));
        let screen = screenshot("one-vnc", 5907, "secret", "", 1).unwrap();
        assert!(screen.starts_with("640x400\n") && screen.ends_with("/root #"), "no prompt:\n{screen}");
        let screen = screenshot("one-vnc", 5907, "secret", "echo typed $((40+2)); stty size\r", 1).unwrap();
        println!("{screen}");
        assert!(screen.contains("# echo typed $((40+2)); stty size\ntyped 42\n25 80"), "{screen}");
        // Another client sees the same, while both look.
        let (one, two) = thread::scope(|s| {
            let other = s.spawn(|| screenshot("one-vnc", 5907, "secret", "", 1).unwrap());
            (screenshot("one-vnc", 5907, "secret", "", 1).unwrap(), other.join().unwrap())
        });
        assert_eq!(one, two);
        // Who has not the password, or says that none was asked for, gets nothing.
        assert!(screenshot("one-vnc", 5907, "wrong", "", 0).is_err());
        let heard = raw_vnc("one-vnc", 5907, &messages(&[b"RFB 003.008\n", &[1], &[1]]));
        assert_eq!(heard, b"RFB 003.008\n\x01\x02", "it went on: {heard:?}");

        // Ends after a while without keys; who comes back begins anew.
        thread::sleep(Duration::from_secs(8));
        let screen = screenshot("one-vnc", 5907, "secret", "", 1).unwrap();
        assert!(!screen.contains("typed 42"), "{screen}");
        // The command ends: a key starts it again.
        let screen = screenshot("one-vnc", 5907, "secret", "exit\r", 1).unwrap();
        assert!(screen.contains("the command has ended"), "{screen}");
        let screen = screenshot("one-vnc", 5907, "secret", "x", 1).unwrap();
        assert!(screen.contains("/root #") && !screen.contains("ended"), "{screen}");

        // It goes on after a reboot, and ends with its instance.
        host.done("reboot", &of_one7, None);
        assert!(screenshot("one-vnc", 5907, "secret", "", 1).unwrap().contains("/root #"));
        host.done("shutdown", &of_one7, None);
        assert!(screenshot("one-vnc", 5907, "secret", "", 0).is_err());
        host.clean();
        // One whose instance ends without a script.
        host.done("deploy", &deploy, Some(&vm(7, "", graphics, "")));
        host.ok(&["incus", "stop", "-f", "one-7"]);
        eventually("the console is gone", || screenshot("one-vnc", 5907, "secret", "", 0).is_err());
        host.done("cancel", &of_one7, None);
        host.clean();

        // A client may give the terminal another size: it is told that, and the others, and whoever comes later.
        host.run(
            &["sh", "-c", "cat >/var/tmp/one/etc/vmm/incus/lxdrc"],
            ":vnc:\n  :command: /bin/sh\n  :allow_no_password: true\n",
        );
        host.done("deploy", &deploy, Some(&vm(7, "", open, "")));
        let hello: [&[u8]; 3] = [b"RFB 003.008\n", &[1], &[1]];
        let encodings = [&[2, 0, 0, 2][..], &0_i32.to_be_bytes(), &(-308_i32).to_be_bytes()].concat();
        let update = |incremental| [&[3, incremental][..], &[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]].concat();
        let size = |width: u16, height: u16| {
            let [w, h] = [width.to_be_bytes(), height.to_be_bytes()];
            let screen = [0, 0, 0, 0, 0, 0, 0, 0, w[0], w[1], h[0], h[1], 0, 0, 0, 0];
            [&[251, 0, w[0], w[1], h[0], h[1], 1, 0][..], &screen].concat()
        };
        let asks = |parts: &[&[u8]]| raw_vnc("one-vnc", 5907, &messages(&[&hello, parts].concat()));
        let told = |heard: &[u8], reason: u16, status: u16, (width, height): (u16, u16)| {
            let head = [reason, status, width, height].map(u16::to_be_bytes).concat();
            let rectangle = [&head[..], &(-308_i32).to_be_bytes()].concat();
            heard.windows(rectangle.len()).any(|w| w == rectangle)
        };
        let first = [encodings.clone(), update(0)].concat();
        let wish = [size(1000, 700), update(1)].concat();
        // The other one only looks, long enough.
        let (asker, looker) = thread::scope(|s| {
            let looker = s.spawn(|| asks(&[&first, &[]]));
            thread::sleep(Duration::from_millis(1500));
            let asker = asks(&[&first, &wish]);
            (asker, looker.join().unwrap())
        });
        // Whole cells of 8 by 16.
        assert!(told(&asker, 0, 0, (800, 592)), "the first size was not told");
        assert!(told(&asker, 1, 0, (1000, 688)), "the wish was not answered");
        assert!(told(&looker, 2, 0, (1000, 688)), "the other client was not told");
        let refused = asks(&[&first, &[size(9999, 9999), update(1)].concat()]);
        assert!(told(&refused, 1, 3, (1000, 688)), "an impossible wish was not answered");
        let screen = screenshot("one-vnc", 5907, "", "stty size\r", 1).unwrap();
        assert!(screen.starts_with("1000x688\n") && screen.contains("43 125"), "{screen}");
        host.done("cancel", &of_one7, None);
        host.clean();
    });
}
