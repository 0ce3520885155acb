"""The export leases (HttpNfcLease) of the fake vCenter: ExportSnapshot and what follows, with the
field names of the vSphere Web Services API. Disks come as streamOptimized VMDKs, chunked, without a
Content-Length; ranges are ignored.

Script it by these attributes of the fake:
  nfc_host = "*"            the host in deviceUrl; None: the fake's own host and port
  nfc_thumbprint = None     sslThumbprint of every deviceUrl
  nfc_key = function(vm, disk)     replaces the usual key
  lease_timeout = 300       seconds without HttpNfcLeaseProgress until a lease is over, as is said
  lease_patience = None     so many it takes in fact; None: as is said
  lease_bytes = None        it is over only when more than so many bytes were sent since, too
  lease_looks = 1           how often a lease is seen initializing
  lease_faults = [fault(..)]       the next leases end in state error
  nfc_cuts = [n, ...]       the next streams break off after n bytes; None: not
  nfc_damage = [function(data), ...]   the next streams send what it makes of the VMDK
  nfc_pauses = [(n, wait), ...]    the next streams are silent after n bytes until wait() returns
  nfc_rate = 0              bytes per second of each stream; 0: no limit
  nfc_holds = {}            by disk key: streams wait at so many bytes until nfc_go is set
  nfc_manifest = function(key, sha1, size, capacity) -> XML of an entry, or None for no manifest
"""
import hashlib
import struct
import threading
import time
import zlib
from xml.sax.saxutils import escape

VIM = "{urn:vim25}"
SECTOR, GRAIN, ENTRIES = 512, 65536, 512
CONTROLLER_TYPES = {200: "VirtualIDEController0", 1000: "ParaVirtualSCSIController0",
                    15000: "VirtualAHCIController0"}
PIECE = 64 * 1024


def pad(data):
    return data + bytes(-len(data) % SECTOR)


def stream_optimized(data):
    """A streamOptimized VMDK of these bytes as ESXi sends it: zero grains left out, each table
    behind its grains, directory and footer at the end."""
    capacity = len(data) // SECTOR
    text = (f'# Disk DescriptorFile\nversion=1\nCID=7e5f80a7\nparentCID=ffffffff\n'
            f'createType="streamOptimized"\n\n# Extent description\nRDONLY {capacity} SPARSE '
            f'"generated-stream.vmdk"\n\n#DDB\nddb.adapterType = "lsilogic"\n').encode()

    def header(directory):
        return struct.pack("<4sIIQQQQIQQQB4sH", b"KDMV", 3, 0x30001, capacity, GRAIN // SECTOR, 1,
                           20, ENTRIES, 0, directory, 128, 0, b"\n \r\n", 1).ljust(SECTOR, b"\0")

    def marker(count, kind):
        return struct.pack("<QII", count, 0, kind).ljust(SECTOR, b"\0")

    out = bytearray((header(0xffffffffffffffff) + text).ljust(128 * SECTOR, b"\0"))
    directory = []
    zero = bytes(GRAIN)
    for span in range(0, len(data), GRAIN * ENTRIES):
        table = [0] * ENTRIES
        for i, at in enumerate(range(span, min(span + GRAIN * ENTRIES, len(data)), GRAIN)):
            grain = data[at:at + GRAIN].ljust(GRAIN, b"\0")
            if grain == zero:
                continue
            table[i] = len(out) // SECTOR
            packed = zlib.compress(grain, 1)
            out += pad(struct.pack("<QI", at // SECTOR, len(packed)) + packed)
        if not any(table):
            directory.append(0)
            continue
        out += marker(4, 1)
        directory.append(len(out) // SECTOR)
        out += struct.pack(f"<{ENTRIES}I", *table)
    raw = pad(struct.pack(f"<{len(directory)}I", *directory))
    out += marker(len(raw) // SECTOR, 2)
    at = len(out) // SECTOR
    out += raw + marker(1, 3) + header(at) + bytes(SECTOR)
    return bytes(out)


class Lease:
    def __init__(self, id, vm, looks, fault):
        self.id, self.vm, self.looks, self.fault = id, vm, looks, fault
        self.state = "initializing"
        self.renewed = time.monotonic()
        self.percents = []
        self.unrenewed_bytes = 0
        self.sent = {}  # key -> (sha1, size, capacity) of what was sent whole


class NfcLeases:
    """Mixed into FakeVsphere; uses its lock, numbers, Fault."""

    def nfc_init(self):
        self.nfc_host = "*"
        self.nfc_thumbprint = None
        self.nfc_key = None
        self.lease_timeout, self.lease_patience = 300, None
        self.lease_bytes = None
        self.lease_looks = 1
        self.lease_faults = []
        self.nfc_cuts, self.nfc_damage, self.nfc_pauses = [], [], []
        self.nfc_rate = 0
        self.nfc_holds, self.nfc_go = {}, threading.Event()
        self.nfc_manifest = self.nfc_entry
        self.leases = {}
        self.nfc_requests = []  # (path, has a cookie)
        self.nfc_sent_bytes = 0
        self.streams = {}       # (vm id, disk key) -> VMDK, made once

    # ---- SOAP ----

    def do_ExportSnapshot(self, call, request):
        snapshot = call.findtext(VIM + "_this")
        vm = next((v for v in self.vms.values() if snapshot in v.snapshots), None)
        if vm is None:
            raise self.Fault("ManagedObjectNotFound")
        if any(lease.vm is vm and self.alive(lease) for lease in self.leases.values()):
            raise self.Fault("InvalidState", "The VM is being exported already")
        id = f"session[52]{next(self.numbers)}"
        planned = self.lease_faults.pop(0) if self.lease_faults else None
        self.leases[id] = Lease(id, vm, self.lease_looks, planned)
        return f'<returnval type="HttpNfcLease">{id}</returnval>', None

    def alive(self, lease):
        """Has it not timed out, nor ended?"""
        if lease.state in ("initializing", "ready") and \
                time.monotonic() - lease.renewed > (self.lease_patience or self.lease_timeout) and \
                (self.lease_bytes is None or lease.unrenewed_bytes > self.lease_bytes):
            lease.state, lease.fault = "error", self.Fault("Timedout", "The lease timed out")
        return lease.state in ("initializing", "ready")

    def lease_of(self, call):
        lease = self.leases.get(call.findtext(VIM + "_this"))
        if lease is None:
            raise self.Fault("ManagedObjectNotFound", "no such lease")
        if not self.alive(lease) or lease.state != "ready":
            raise self.Fault("InvalidState", f"the lease is {lease.state}")
        return lease

    def lease_value(self, id):
        def value(path):
            lease = self.leases[id]
            if path == "state":
                if lease.state == "initializing":
                    if lease.looks <= 0:
                        lease.state = "error" if lease.fault else "ready"
                    lease.looks -= 1
                self.alive(lease)
                return "HttpNfcLeaseState", lease.state
            if path == "error" and lease.state == "error":
                return "LocalizedMethodFault", (f'<fault xsi:type="{lease.fault.kind}"/>'
                                                f'<localizedMessage>{escape(lease.fault.message)}'
                                                '</localizedMessage>')
            if path == "info" and lease.state == "ready":
                return "HttpNfcLeaseInfo", self.lease_info(lease)
            return None
        return value

    def usual_key(self, vm, disk):
        return f"/{vm.id}/{CONTROLLER_TYPES[disk.controller]}:{disk.unit}"

    def key_of(self, vm, disk):
        return (self.nfc_key or self.usual_key)(vm, disk)

    def lease_info(self, lease):
        urls = ""
        thumbprint = f"<sslThumbprint>{self.nfc_thumbprint}</sslThumbprint>" if self.nfc_thumbprint else ""
        for i, disk in enumerate(lease.vm.disks):
            url = f"https://{self.nfc_host or self.host}/nfc/{lease.id}/disk-{i}.vmdk"
            urls += (f"<deviceUrl><key>{self.key_of(lease.vm, disk)}</key><importKey>{i}</importKey>"
                     f"<url>{url}</url>{thumbprint}<disk>true</disk>"
                     f"<targetId>disk-{i}.vmdk</targetId></deviceUrl>")
        urls += (f"<deviceUrl><key>/{lease.vm.id}/nvram</key><importKey/><url>https://"
                 f"{self.nfc_host or self.host}/nfc/{lease.id}/x.nvram</url><disk>false</disk>"
                 "<targetId>x.nvram</targetId><fileSize>8684</fileSize></deviceUrl>")
        total = sum(d.capacity for d in lease.vm.disks) // 1024
        return (f'<lease type="HttpNfcLease">{lease.id}</lease><entity type="VirtualMachine">'
                f'{lease.vm.id}</entity>{urls}<totalDiskCapacityInKB>{total}'
                f'</totalDiskCapacityInKB><leaseTimeout>{self.lease_timeout}</leaseTimeout>')

    def do_HttpNfcLeaseProgress(self, call, request):
        lease = self.lease_of(call)
        percent = int(call.findtext(VIM + "percent"))
        if not 0 <= percent <= 100:
            raise self.Fault("InvalidArgument", "percent")
        lease.renewed, lease.unrenewed_bytes = time.monotonic(), 0
        lease.percents.append(percent)
        return "", None

    @staticmethod
    def nfc_entry(key, sha1, size, capacity):
        return (f"<returnval><key>{key}</key><sha1>{sha1}</sha1><size>{size}</size><disk>true</disk>"
                f"<capacity>{capacity}</capacity></returnval>")

    def do_HttpNfcLeaseGetManifest(self, call, request):
        lease = self.lease_of(call)
        if self.nfc_manifest is None:
            raise self.Fault("MethodNotFound")
        return "".join(self.nfc_manifest(key, *sent) for key, sent in lease.sent.items()), None

    def do_HttpNfcLeaseComplete(self, call, request):
        self.lease_of(call).state = "done"
        return "", None

    def do_HttpNfcLeaseAbort(self, call, request):
        lease = self.lease_of(call)
        lease.state, lease.fault = "error", self.Fault("RequestCanceled", "aborted")
        lease.aborted = True
        return "", None

    # ---- the files ----

    def nfc_file(self, request):
        _, _, id, name = request.path.split("/")
        with self.lock:
            cookie = self.cookie_of(request)
            self.nfc_requests.append((request.path, cookie is not None))
            lease = self.leases.get(id)
            if cookie not in self.sessions:
                return self.answer(request, 403, b"")
            if lease is None or not self.alive(lease) or not name.startswith("disk-"):
                return self.answer(request, 404, b"")
            disk = lease.vm.disks[int(name[5:-5])]
            data = self.streams.get((lease.vm.id, disk.key))
            if data is None:
                data = self.streams[lease.vm.id, disk.key] = stream_optimized(disk.data)
            cut = self.nfc_cuts.pop(0) if self.nfc_cuts else None
            pause = self.nfc_pauses.pop(0) if self.nfc_pauses else (0, lambda: None)
            if self.nfc_damage:
                data = self.nfc_damage.pop(0)(data)
        return self.nfc_send(request, lease, disk, data, (cut, pause))

    def nfc_send(self, request, lease, disk, data, faults):
        """Chunked; the last chunk only when nothing was cut and the lease lived."""
        request.send_response(200)
        request.send_header("Content-Type", "application/x-vnd.vmware-streamVmdk")
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        cut, (pause_at, pause) = faults
        end = len(data) if cut is None else cut
        try:
            for at in range(0, end, PIECE):
                piece = data[at:min(at + PIECE, end)]
                if at <= pause_at < at + PIECE:
                    pause()
                if at >= self.nfc_holds.get(disk.key, end):
                    self.nfc_go.wait(600)
                request.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                with self.lock:
                    self.nfc_sent_bytes += len(piece)
                    lease.unrenewed_bytes += len(piece)
                    rate = self.nfc_rate
                    alive = self.alive(lease)
                if not alive:
                    cut = at
                    break
                if rate:
                    time.sleep(len(piece) / rate)
            if cut is None:
                with self.lock:  # before the client sees the end
                    lease.sent[self.key_of(lease.vm, disk)] = (hashlib.sha1(data).hexdigest(),
                                                               len(data), disk.capacity)
                request.wfile.write(b"0\r\n\r\n")
        except OSError:
            cut = 0
        if cut is not None:
            request.close_connection = True
