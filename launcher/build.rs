//! Tells cargo where libpython lies, and when else to link anew.

use std::env;

fn main() {
    println!("cargo:rerun-if-env-changed=SNIPROXY_RESOURCES");
    println!("cargo:rerun-if-env-changed=SNIPROXY_INTERPRETER");
    println!("cargo:rerun-if-env-changed=SNIPROXY_LINKED");
    let folder =
        env::var("SNIPROXY_INTERPRETER").expect("SNIPROXY_INTERPRETER: launcher/build.py sets it");
    println!("cargo:rerun-if-changed={folder}/libpython3.a");
    println!("cargo:rustc-link-search=native={folder}");
    println!("cargo:rustc-link-lib=static:-bundle=python3");
}
