//! Drives the library by hand: STORE STEAD_NODE RECIPE...
use stead_image::{BuildRequest, Store};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let store = Store::open(args[0].as_ref()).unwrap();
    for recipe in &args[2..] {
        let mut request = BuildRequest::new(recipe, &args[1]);
        request.refresh = std::env::var_os("REFRESH").is_some();
        match stead_image::build(&store, &request, &mut |p| {
            println!("{}", serde_json::to_string(&p).unwrap())
        }) {
            Ok(out) => println!("{} {} reused={} {} ms", out.name, out.digest, out.reused, out.ms),
            Err(e) => {
                eprintln!("bad_input={}", e.is_bad_input());
                let mut e: &dyn std::error::Error = &e;
                loop {
                    eprintln!("  {e}");
                    match e.source() {
                        Some(s) => e = s,
                        None => break,
                    }
                }
                std::process::exit(1);
            }
        }
    }
}
