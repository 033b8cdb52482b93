# What goes into the executable. launcher/build.py has PyOxidizer run this, and gives the variables:
# the distribution and its hash, the folder of our packages, and the flavour.

# Part of the interpreter itself and run from there (the launcher tells the importer so).
FROZEN = [
    "_collections_abc",
    "abc",
    "codecs",
    "genericpath",
    "importlib._bootstrap",
    "importlib._bootstrap_external",
    "importlib.machinery",
    "importlib.util",
    "io",
    "os",
    "posixpath",
    "stat",
    "zipimport",
]


def pack(policy, resource):
    # Bytecode only: there is no source in the executable.
    resource.add_source = False
    if resource.name in FROZEN:
        resource.add_include = False


def make_resources():
    distribution = PythonDistribution(
        sha256 = VARS["distribution_sha256"],
        local_path = VARS["distribution"],
        flavor = "standalone",
    )

    policy = distribution.make_python_packaging_policy()
    policy.resources_location = "in-memory"
    policy.allow_files = False
    # The trap: False leaves out Python's library whole. `pack` takes the source away again.
    policy.include_distribution_sources = True
    policy.include_distribution_resources = False
    policy.include_test = False
    # Without docstrings and assertions, as with python3 -OO.
    policy.bytecode_optimize_level_zero = False
    policy.bytecode_optimize_level_two = True
    policy.register_resource_callback(pack)

    config = distribution.make_python_interpreter_config()
    config.config_profile = "isolated"
    config.optimization_level = 2
    # As other frozen programs say it of themselves.
    config.sys_frozen = True

    # The working directory is the hosts directory, where others may write, and in a chroot it is
    # "/" as well. With the defaults a file lib/python3.11/sitecustomize.py there is executed. So
    # nothing is ever looked for in the file system, neither by `site` …
    config.site_import = False
    config.user_site_directory = False
    # … nor by the import system …
    config.module_search_paths = []
    config.filesystem_importer = False
    config.write_bytecode = False
    # … nor by the search for Python's own place (pyvenv.cfg, python311._pth, lib/python3.11).
    config.program_name = "/"
    config.executable = "/"
    config.base_executable = "/"
    config.prefix = "/"
    config.base_prefix = "/"
    config.exec_prefix = "/"
    config.base_exec_prefix = "/"
    config.pathconfig_warnings = False
    config.terminfo_resolution = "none"

    # Neither the environment (PYTHON…, LC_…) nor the command line tells the interpreter anything.
    config.use_environment = False
    config.parse_argv = False
    config.configure_locale = False
    config.utf8_mode = True

    # The program sets its own.
    config.install_signal_handlers = False
    # CPython's own: the launcher has no other linked in.
    config.allocator_backend = "default"

    exe = distribution.to_python_executable(
        name = "sniproxy",
        packaging_policy = policy,
        config = config,
    )
    for resource in exe.read_package_root(path = VARS["packages"], packages = ["sniproxy", "idna"]):
        if resource.name != "sniproxy.flavour":
            exe.add_python_resource(resource)

    # The one difference between the flavours: what sniproxy/flavour.py says.
    exe.add_python_resource(exe.make_python_module_source(
        name = "sniproxy.flavour",
        source = "HASHED = {}\n".format("True" if VARS["flavour"] == "hashed" else "False"),
    ))
    return exe.to_embedded_resources()


register_target("resources", make_resources, default = True)
resolve_targets()
