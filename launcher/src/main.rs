//! Starts the interpreter that lies in this executable and runs `sniproxy.commands.main()`.
//!
//! Which command that is, `sniproxy.commands` sees in the last component of `argv[0]`. Whatever is
//! started here runs in a directory where others may write (the hosts directory, in a chroot also
//! "/"), so nothing may be looked for in the file system. The settings that see to it are in
//! `pyoxidizer.bzl`, from which the included file is made; here is what can't be said there.

#![no_main]

use pyembed::{MainPythonInterpreter, OxidizedPythonInterpreterConfig};
use pyo3::{
    ffi,
    types::{PyCFunction, PyModule},
    PyAny, PyResult,
};
use std::{
    env,
    ffi::{c_char, c_int, c_void, CStr, OsString},
    fmt,
    fs::{self, File},
    io::{self, Write},
    mem,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::net::UnixDatagram,
    },
    path::PathBuf,
    process::exit,
    ptr, slice, str,
};

// fn default_python_config(): the settings of pyoxidizer.bzl and the packed modules.
include!(concat!(env!("SNIPROXY_RESOURCES"), "/default_python_config.rs"));

/// Exit status for a fault of the program itself (EX_SOFTWARE of sysexits.h).
const INTERNAL_ERROR: i32 = 70;

/// How many objects more than were freed make Python look for garbage.
const GARBAGE_THRESHOLD: i32 = 100_000;

extern "C" {
    static _PyImport_FrozenBootstrap: *const ffi::_frozen;
    static _PyImport_FrozenStdlib: *const ffi::_frozen;
    fn capset(header: *const CapabilityHeader, sets: *const [u32; 6]) -> c_int;
    fn dup2(from: c_int, to: c_int) -> c_int;
    fn pipe(ends: *mut [c_int; 2]) -> c_int;
    fn setgroups(count: usize, groups: *const u32) -> c_int;
    fn signal(number: c_int, action: usize) -> usize;
    fn fopen(path: *const c_char, mode: *const c_char) -> *mut c_void;
    fn fclose(file: *mut c_void) -> c_int;
    fn fgetpwent_r(
        file: *mut c_void,
        user: *mut User,
        buffer: *mut c_char,
        size: usize,
        found: *mut *mut User,
    ) -> c_int;
}

/// What Python ignores when it starts by itself: a write to a pipe without a reader, or beyond
/// RLIMIT_FSIZE, is then an error, and not the end.
const IGNORED: [c_int; 2] = [SIGPIPE, SIGXFSZ];
const SIGPIPE: c_int = 13;
const SIGXFSZ: c_int = 25;
const SIG_IGN: usize = 1;

/// What fgetpwent_r(3) says behind the last user (ENOENT of errno.h).
const END_OF_FILE: c_int = 2;

/// The highest of the standard descriptors.
const STANDARD_ERROR: i32 = 2;

/// List the interpreter's own frozen modules where PyOxidizer's importer looks for them.
///
/// The trap: CPython 3.11 leaves the list null, and the importer walks it.
fn list_frozen_modules() {
    let mut modules = Vec::new();
    // Sound: nothing else runs yet, and each table ends with an entry without a name.
    unsafe {
        for table in [_PyImport_FrozenBootstrap, _PyImport_FrozenStdlib] {
            let length = (0..).take_while(|&index| !(*table.add(index)).name.is_null()).count();
            modules.extend_from_slice(slice::from_raw_parts(table, length));
        }
        modules.push(ffi::_frozen {
            name: ptr::null(),
            code: ptr::null(),
            size: 0,
            is_package: 0,
            get_code: None,
        });
        ffi::PyImport_FrozenModules = modules.leak().as_ptr();
    }
}

/// Have something behind each of the standard descriptors, so that a log line never gets into
/// what is opened later. What is put there takes no byte: a socket without an address.
fn occupy_standard_descriptors() {
    while let Ok(socket) = UnixDatagram::unbound() {
        if socket.as_raw_fd() > STANDARD_ERROR {
            return;
        }
        mem::forget(socket);
    }
}

/// Have an empty pipe in the place of each standard descriptor that is a directory.
///
/// The trap: CPython does not start there. What runs then says what it misses.
fn replace_directories() {
    for standard in 0..=STANDARD_ERROR {
        // Sound: the descriptor is not closed with the file.
        let file = mem::ManuallyDrop::new(unsafe { File::from_raw_fd(standard) });
        if !file.metadata().is_ok_and(|status| status.is_dir()) {
            continue;
        }
        let mut ends = [0; 2];
        // Sound: the ends are ours alone, and nothing uses the descriptor that one is put onto yet.
        unsafe {
            if pipe(&mut ends) == 0 {
                let [reading, _writing] = ends.map(|end| OwnedFd::from_raw_fd(end));
                dup2(reading.as_raw_fd(), standard);
            }
        }
    }
}

/// A user (struct passwd of pwd.h), as far as we look into it; the C library fills in the rest.
#[repr(C)]
pub struct User {
    name: *const c_char,
    password: *const c_char,
    number: u32,
    group: u32,
    words: [*const c_char; 3],
}

/// Find a user in /etc/passwd; give 0, with null in `found` for nobody, or an error number.
///
/// The trap: the C library, though static, loads the plugins that nsswitch.conf names (Debian's has
/// `systemd` for users) and with them a second C library: a segmentation fault. So the functions
/// that Python's `pwd` calls are these here, and the C library's stay out of the executable.
unsafe fn find_user(
    wanted: impl Fn(&User) -> bool,
    user: *mut User,
    buffer: *mut c_char,
    size: usize,
    found: *mut *mut User,
) -> c_int {
    *found = ptr::null_mut();
    let file = fopen(c"/etc/passwd".as_ptr(), c"re".as_ptr());
    if file.is_null() {
        return 0;
    }
    let mut error;
    loop {
        error = fgetpwent_r(file, user, buffer, size, found);
        if error != 0 || wanted(&*user) {
            break;
        }
    }
    fclose(file);
    if error == END_OF_FILE {
        return 0;
    }
    error
}

/// getpwnam_r(3), sound as it is: the caller's pointers are valid.
#[no_mangle]
pub unsafe extern "C" fn getpwnam_r(
    name: *const c_char,
    user: *mut User,
    buffer: *mut c_char,
    size: usize,
    found: *mut *mut User,
) -> c_int {
    let name = CStr::from_ptr(name);
    find_user(|user| CStr::from_ptr(user.name) == name, user, buffer, size, found)
}

/// getpwuid_r(3), sound as it is: the caller's pointers are valid.
#[no_mangle]
pub unsafe extern "C" fn getpwuid_r(
    number: u32,
    user: *mut User,
    buffer: *mut c_char,
    size: usize,
    found: *mut *mut User,
) -> c_int {
    find_user(|user| user.number == number, user, buffer, size, found)
}

/// Name the groups that list `user` in /etc/group, after `own`, each once.
fn groups_of(user: &[u8], own: u32) -> Vec<u32> {
    let mut groups = vec![own];
    for line in fs::read("/etc/group").unwrap_or_default().split(|&byte| byte == b'\n') {
        let fields: Vec<_> = line.split(|&byte| byte == b':').collect();
        let [_, _, number, members] = fields[..] else { continue };
        let Some(group) = str::from_utf8(number).ok().and_then(|digits| digits.parse().ok()) else {
            continue;
        };
        if members.split(|&byte| byte == b',').any(|one| one == user) && !groups.contains(&group) {
            groups.push(group);
        }
    }
    groups
}

/// getgrouplist(3), without plugins like the users; sound as it is: the caller's pointers are valid.
#[no_mangle]
pub unsafe extern "C" fn getgrouplist(
    user: *const c_char,
    own: u32,
    groups: *mut u32,
    count: *mut c_int,
) -> c_int {
    let found = groups_of(CStr::from_ptr(user).to_bytes(), own);
    let room = mem::replace(&mut *count, found.len() as c_int);
    let fitting = found.len().min(room.max(0) as usize);
    ptr::copy_nonoverlapping(found.as_ptr(), groups, fitting);
    if fitting < found.len() {
        return -1;
    }
    *count
}

/// initgroups(3), sound as it is: the caller's pointer is valid.
#[no_mangle]
pub unsafe extern "C" fn initgroups(user: *const c_char, own: u32) -> c_int {
    let groups = groups_of(CStr::from_ptr(user).to_bytes(), own);
    setgroups(groups.len(), groups.as_ptr())
}

/// Which process capset(2) is about: this one, if 0.
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    process: c_int,
}

/// _LINUX_CAPABILITY_VERSION_3
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// Have no capability any more; a function for Python, which raises OSError.
unsafe extern "C" fn drop_capabilities(
    _module: *mut ffi::PyObject,
    _arguments: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    let header = CapabilityHeader { version: CAPABILITY_VERSION, process: 0 };
    if capset(&header, &[0; 6]) != 0 {
        return ffi::PyErr_SetFromErrno(ffi::PyExc_OSError);
    }
    let none = ffi::Py_None();
    ffi::Py_INCREF(none);
    none
}

/// Give `sniproxy.tools.capabilities` what Python's library does not have: a module of the launcher.
fn add_module(sys: &PyAny) -> PyResult<()> {
    let module = PyModule::new(sys.py(), "_launcher")?;
    let function = PyCFunction::new(drop_capabilities, "drop_capabilities", "", module.into())?;
    module.setattr("drop_capabilities", function)?;
    sys.getattr("modules")?.set_item("_launcher", module)
}

/// Where the C library starts us.
///
/// The trap: Rust's own start opens /dev/null for each standard descriptor that is closed. Below a
/// chroot that may be somebody else's file, and where there is none the process aborts.
#[no_mangle]
pub extern "C" fn main(_count: c_int, _arguments: *const *const c_char) -> c_int {
    replace_directories();
    for number in IGNORED {
        // Sound: no handler of ours runs.
        unsafe { signal(number, SIG_IGN) };
    }
    list_frozen_modules();
    let zone = env::var_os("TZ");
    // The trap: CPython asks for the time zone when it starts, and glibc opens /etc/localtime. A lone
    // colon is the one value for which it opens nothing (even "" and "UTC0" are looked for).
    env::set_var("TZ", ":");
    let interpreter = MainPythonInterpreter::new(configuration()).unwrap_or_else(|error| {
        complain(format_args!("the interpreter does not start: {error}"));
        exit(INTERNAL_ERROR)
    });
    // Not before: what was closed, Python knows as None.
    occupy_standard_descriptors();
    let status = run(&interpreter, zone);
    // Ends the interpreter, which writes out what standard output still holds.
    drop(interpreter);
    status
}

/// Write a line to standard error, if it takes one.
fn complain(text: fmt::Arguments) {
    // The trap: eprintln! panics where nothing can be written, as on a listening socket.
    let _ = writeln!(io::stderr(), "sniproxy: {text}");
}

fn configuration() -> OxidizedPythonInterpreterConfig<'static> {
    let mut configuration = default_python_config();
    // The trap: unless both are set, pyembed asks /proc/self/exe, which a chroot does not have, and
    // resolves a path that may have been removed already (ExecStartPost=rm). "/" always exists.
    configuration.exe = Some(PathBuf::from("/"));
    configuration.origin = Some(PathBuf::from("/"));
    configuration
}

/// Run the command; give its exit status.
fn run(interpreter: &MainPythonInterpreter, zone: Option<OsString>) -> i32 {
    interpreter.with_gil(|py| {
        let outcome = py.import("os").and_then(|os| {
            // Commands that we exec get the environment as it was.
            let environ = os.getattr("environ")?;
            match zone {
                Some(zone) => environ.set_item("TZ", zone)?,
                None => environ.del_item("TZ")?,
            }
            let sys = py.import("sys")?;
            // The trap: the interpreter's own way of printing a traceback opens files named after
            // the modules in the working directory, where one may be a FIFO. With a limit of 0 no
            // frame is printed, and none is looked up. (launcher/stand_in sees to Python's way.)
            sys.setattr("tracebacklimit", 0)?;
            add_module(sys)?;
            // The start makes some 30,000 objects that stay. To look for garbage among them every
            // 700 takes an eighth of it.
            py.import("gc")?.call_method1("set_threshold", (GARBAGE_THRESHOLD, 10, 10))?;
            py.import("sniproxy.commands")?.call_method0("main")?.extract()
        });
        match outcome {
            Ok(status) => status,
            Err(error) => {
                // SystemExit carries a status; anything else should have ended further in.
                let code = error.value(py).getattr("code").and_then(|code| code.extract());
                code.unwrap_or_else(|_| {
                    complain(format_args!("internal error: {error}"));
                    INTERNAL_ERROR
                })
            }
        }
    })
}
