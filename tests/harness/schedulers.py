"""Leader and standby: two schedulers with addresses of their own, over tcp or mutual TLS."""
import subprocess

from .wait import free_port, wait_for

NAMES = ("lease", "events", "announce")


def make_bus_certificates(directory):
    """(CA's file, file with certificate and key) for peers named "scheduler"; one for all."""
    directory.mkdir(exist_ok=True)
    ca, both = directory / "ca.pem", directory / "peer.pem"

    def openssl(*words):
        subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True,
                       cwd=directory)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", ca, "-days", "30", "-subj",
            "/CN=bus CA", "-addext", "basicConstraints=critical,CA:TRUE")
    openssl("req", "-new", *curve, "-keyout", "peer.key", "-out", "peer.csr", "-subj",
            "/CN=scheduler")
    (directory / "san").write_text("subjectAltName=DNS:scheduler\n")
    openssl("x509", "-req", "-in", "peer.csr", "-CA", ca, "-CAkey", "ca.key", "-CAcreateserial",
            "-out", "peer.crt", "-days", "30", "-extfile", "san")
    both.write_text((directory / "peer.crt").read_text() + (directory / "peer.key").read_text())
    for path in directory.iterdir():
        path.chmod(0o644)
    return ca, both


def pair_of_addresses(scheme="tcp", hosts=("127.0.0.1", "127.0.0.1")):
    return {n: [f"{scheme}://{host}:{free_port()}" for host in hosts] for n in NAMES}


def bus_section(directory, scheme="tcp", **options):
    """The section `bus` of a suite with two schedulers."""
    section = pair_of_addresses(scheme, **options)
    if scheme == "tls+tcp":
        ca, both = make_bus_certificates(directory)
        section.update(tls_ca_file=str(ca), tls_cert_key_file=str(both))
    return section


def add_standby(suite, name="scheduler-2"):
    """The second one, on the second address of each list; waits until it stands by."""
    settings = suite.config(name)
    for n in NAMES:
        settings["bus"][f"listen_{n}"] = settings["bus"][n][1]
    suite.add(name, settings)
    suite[name].wait_event("standing_by")


def leader(suite):
    return suite.sql("SELECT holder, epoch, until > clock_timestamp() AS alive FROM leader")[0]


def wait_leads(suite, name, deadline=60):
    wait_for(lambda: suite.ready(name), deadline, lambda: f"{name} leads\n{suite.tails()}")
