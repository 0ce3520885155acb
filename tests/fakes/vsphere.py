"""A vCenter made by hand for what real ones rarely do: sessions that expire, paging, faults, and a
/folder that ignores ranges, changes files, cuts answers and lies about sizes. Field names, order of
parameters and faults as in the vSphere Web Services API (urn:vim25).

Script it by its attributes (all may be changed while it runs):
  faults["CreateSnapshot_Task"] = [fault("NoPermission", ...)]   the next calls answer these
  task_faults["RemoveSnapshot_Task"] = [fault("FileLocked")]     the next tasks end with these
  session_calls = 3                   a login is good for so many calls
  page_objects = 2                    objects per page of RetrievePropertiesEx, whatever is asked
  folder = function(request, file)    sees every /folder request first; true: it has answered
  change_window = 4 << 20             one QueryChangedDiskAreas answers for so many bytes
  changes = function(query)           XML inside its returnval, or raises a fault; None: the truth
Changed block tracking: Disk(..., cbt="52 d0 9a").write(offset, data) is what the guest does.
Export leases (method nfc): vsphere_nfc.py. Tags: vsphere_rest.py.
"""
import http.server
import itertools
import re
import ssl
import threading
import urllib.parse
import xml.etree.ElementTree as ET
from xml.sax.saxutils import escape

from tests.fakes.vsphere_nfc import NfcLeases
from tests.fakes.vsphere_rest import Rest
from tests.harness.vsphere import make_certificate

VIM = "{urn:vim25}"
XSI = 'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'
ENVELOPE = ('<?xml version="1.0" encoding="UTF-8"?>\n<soapenv:Envelope '
            'xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/" '
            'xmlns:xsd="http://www.w3.org/2001/XMLSchema" ' + XSI +
            '><soapenv:Body>%s</soapenv:Body></soapenv:Envelope>')

# Parameters in schema order: a real server refuses any other.
ORDER = {
    "RetrieveServiceContent": ["_this"],
    "CurrentTime": ["_this"],
    "Login": ["_this", "userName", "password", "locale"],
    "Logout": ["_this"],
    "CreateContainerView": ["_this", "container", "type", "recursive"],
    "DestroyView": ["_this"],
    "RetrievePropertiesEx": ["_this", "specSet", "options"],
    "ContinueRetrievePropertiesEx": ["_this", "token"],
    "CancelRetrievePropertiesEx": ["_this", "token"],
    "CreateSnapshot_Task": ["_this", "name", "description", "memory", "quiesce"],
    "RemoveSnapshot_Task": ["_this", "removeChildren", "consolidate"],
    "ConsolidateVMDisks_Task": ["_this"],
    "ReconfigVM_Task": ["_this", "spec"],
    "QueryChangedDiskAreas": ["_this", "snapshot", "deviceKey", "startOffset", "changeId"],
    "ExportSnapshot": ["_this"],
    "HttpNfcLeaseProgress": ["_this", "percent"],
    "HttpNfcLeaseGetManifest": ["_this"],
    "HttpNfcLeaseComplete": ["_this"],
    "HttpNfcLeaseAbort": ["_this", "fault"],
}
CBT_BLOCK = 64 << 10  # the least that tracking tells apart
WITHOUT_LOGIN = {"RetrieveServiceContent", "CurrentTime", "Login"}


class Fault(Exception):
    def __init__(self, kind, message="", detail=""):
        super().__init__(kind)
        self.kind = kind
        self.message = message or f"a fault of type {kind}"
        self.detail = detail


def fault(kind, message="", detail=""):
    """detail: XML inside the fault, e.g. <privilegeId>VirtualMachine.State...</privilegeId>"""
    return Fault(kind, message, detail)


class Disk:
    """One virtual disk; data: its bytes, None: there is no file."""

    def __init__(self, key, data, path, kind="VirtualDiskFlatVer2BackingInfo", controller=1000,
                 unit=0, mode="persistent", extra="", capacity=None, descriptor=None, cbt=None):
        self.key, self.data, self.path, self.kind = key, data, path, kind
        self.controller, self.unit, self.mode, self.extra = controller, unit, mode, extra
        self.capacity = len(data or b"") if capacity is None else capacity
        self.descriptor = descriptor
        self.series = cbt     # uuid of its change tracking; None: off
        self.sequence = 1     # rises with every snapshot
        self.tracked = []     # (sequence, offset, length) of all writes
        self.delta = []       # (offset, data) written since there is a snapshot
        self.frozen_id = ""   # change id in the snapshot's configuration
        self.has_delta = False

    # ---- what the guest does ----

    def write(self, offset, data):
        self.tracked.append((self.sequence, offset, len(data)))
        if self.has_delta:
            self.delta.append((offset, data))
        else:
            self.data = self.data[:offset] + data + self.data[offset + len(data):]

    def track(self, series):
        """The VM's setting reaches the disk."""
        if (series is None) != (self.series is None):
            self.series, self.sequence, self.tracked = series, 1, []

    def freeze(self):
        """A snapshot is made."""
        self.has_delta = True
        if self.series is not None:
            self.sequence += 1
            self.frozen_id = f"{self.series}/{self.sequence}"

    def melt(self):
        """The last snapshot is gone."""
        self.has_delta = False
        for offset, data in self.delta:
            self.data = self.data[:offset] + data + self.data[offset + len(data):]
        self.delta = []

    def changed(self, since, until):
        """[(start, length)] of the blocks written between two sequence numbers, in rising order."""
        blocks = sorted({block for sequence, offset, length in self.tracked
                         if since <= sequence < until and length > 0
                         for block in range(offset // CBT_BLOCK, (offset + length - 1) // CBT_BLOCK + 1)})
        areas = []
        for block in blocks:
            start, end = block * CBT_BLOCK, min((block + 1) * CBT_BLOCK, self.capacity)
            if areas and sum(areas[-1]) == start:
                areas[-1] = (areas[-1][0], end - areas[-1][0])
            else:
                areas.append((start, end - start))
        return areas

    def change_id(self, frozen):
        if self.series is None:
            return ""
        return f"<changeId>{self.frozen_id if frozen else f'{self.series}/{self.sequence}'}</changeId>"

    def xml(self, frozen=False):
        """frozen: as a snapshot's configuration names it; after it the VM works on a delta."""
        path, parent = self.path, self.change_id(frozen) + self.extra
        if not frozen and self.has_delta:
            path = self.path.replace(".vmdk", "-000001.vmdk")
            parent += f'<parent><fileName>{escape(self.path)}</fileName></parent>'
        return (f'<VirtualDevice xsi:type="VirtualDisk"><key>{self.key}</key><deviceInfo><label>'
                f'Hard disk {self.key - 1999}</label><summary/></deviceInfo>'
                f'<backing xsi:type="{self.kind}"><fileName>{escape(path)}</fileName>'
                f'<diskMode>{self.mode}</diskMode><thinProvisioned>true</thinProvisioned>{parent}'
                f'</backing><controllerKey>{self.controller}</controllerKey><unitNumber>{self.unit}'
                f'</unitNumber><capacityInKB>{self.capacity // 1024}</capacityInKB>'
                f'<capacityInBytes>{self.capacity}</capacityInBytes></VirtualDevice>')


CONTROLLERS = ('<VirtualDevice xsi:type="VirtualIDEController"><key>200</key><busNumber>0</busNumber>'
               '</VirtualDevice><VirtualDevice xsi:type="ParaVirtualSCSIController"><key>1000</key>'
               '<busNumber>0</busNumber></VirtualDevice><VirtualDevice xsi:type='
               '"VirtualAHCIController"><key>15000</key><busNumber>0</busNumber></VirtualDevice>')


def nic(key, mac, network="VM Network", portgroup=None, kind="VirtualVmxnet3"):
    backing = (f'<backing xsi:type="VirtualEthernetCardDistributedVirtualPortBackingInfo"><port>'
               f'<switchUuid>50 0</switchUuid><portgroupKey>{portgroup}</portgroupKey></port>'
               f'</backing>' if portgroup else
               f'<backing xsi:type="VirtualEthernetCardNetworkBackingInfo"><deviceName>{network}'
               f'</deviceName></backing>')
    return (f'<VirtualDevice xsi:type="{kind}"><key>{key}</key>{backing}<macAddress>{mac}'
            f'</macAddress></VirtualDevice>')


class Cdrom:
    """A virtual CD-ROM drive; iso: "[ds] path", else device: what it is connected to."""

    def __init__(self, key, iso=None, device="", kind="VirtualCdromAtapiBackingInfo", controller=200):
        self.key, self.controller = key, controller
        self.backing = ('<backing xsi:type="VirtualCdromIsoBackingInfo"><fileName>'
                        f'{escape(iso)}</fileName></backing>' if iso is not None else
                        f'<backing xsi:type="{kind}"><deviceName>{device}</deviceName></backing>')

    def xml(self):
        return (f'<VirtualDevice xsi:type="VirtualCdrom"><key>{self.key}</key><deviceInfo><label>CD/DVD '
                f'drive {self.key % 1000 + 1}</label></deviceInfo>{self.backing}<controllerKey>'
                f'{self.controller}</controllerKey><unitNumber>0</unitNumber></VirtualDevice>')


class Vm:
    def __init__(self, id, name, disks=(), power="poweredOff", parent="group-v3", nics="", cdroms=(),
                 **facts):
        self.id, self.name, self.disks, self.power = id, name, list(disks), power
        self.parent, self.nics, self.cdroms = parent, nics, list(cdroms)
        self.facts = {"config.template": "false", "runtime.connectionState": "connected",
                      "config.firmware": "bios", "config.guestId": "debian10_64Guest",
                      "config.hardware.numCPU": "2", "config.hardware.memoryMB": "2048",
                      "config.version": "vmx-13"}
        self.facts.update({k.replace("__", "."): v for k, v in facts.items()})
        self.raw = {}        # path -> XML of the val's content
        self.hidden = set()  # paths that the account may not read
        self.snapshots = {}  # id -> (name, description)
        self.consolidation_needed = []  # answers to come; then "false"

    def devices(self, frozen=False):
        return (CONTROLLERS + self.nics + "".join(c.xml() for c in self.cdroms)
                + "".join(d.xml(frozen) for d in self.disks))

    def value(self, path):
        """(xsi:type, XML) of a property, None when it is unset."""
        if path in self.raw:
            return "anyType", self.raw[path]
        if path == "name":
            return "xsd:string", escape(self.name)
        if path == "parent":
            return "ManagedObjectReference", self.parent
        if path == "runtime.powerState":
            return "VirtualMachinePowerState", self.power
        if path == "config.hardware.device":
            return "ArrayOfVirtualDevice", self.devices()
        if path == "runtime.consolidationNeeded":
            answers = self.consolidation_needed
            return "xsd:boolean", answers.pop(0) if answers else "false"
        if path == "snapshot" and self.snapshots:
            tree = "".join(f'<rootSnapshotList><snapshot type="VirtualMachineSnapshot">{i}</snapshot>'
                           f'<name>{escape(n)}</name><description>{escape(d)}</description>'
                           f'<id>1</id></rootSnapshotList>' for i, (n, d) in self.snapshots.items())
            return "VirtualMachineSnapshotInfo", tree
        if path in self.facts:
            return "xsd:string", escape(self.facts[path])
        return None


FOLDERS = [  # type, id, name, parent
    ("Datacenter", "datacenter-2", "DC0", "group-d1"),
    ("Folder", "group-v3", "vm", "datacenter-2"),
    ("Folder", "group-v10", "prod%2fold", "group-v3"),
    ("Datacenter", "datacenter-20", "DC 1", "group-d1"),
    ("Folder", "group-v23", "vm", "datacenter-20"),
    ("Network", "network-7", "VM Network", "datacenter-2"),
    ("DistributedVirtualPortgroup", "dvportgroup-9", "prod-net", "datacenter-2"),
]
DERIVED = {"Network": {"Network", "DistributedVirtualPortgroup", "OpaqueNetwork"}}


class FakeVsphere(NfcLeases, Rest):
    Fault = Fault

    def __init__(self, directory, vms=()):
        self.cert, key = make_certificate(directory, "fake-vcenter")
        self.user, self.password = "backup@vsphere.local", "p<a>ss & word"
        self.vms = {vm.id: vm for vm in vms}
        self.api_type = "VirtualCenter"
        self.api_version = "7.0.3.0"
        self.faults, self.task_faults = {}, {}
        self.session_calls = None
        self.page_objects = None
        self.folder = None
        self.folder_needs_cookie = True
        self.etags = {}          # "[ds] path" -> ETag
        self.modified = "Mon, 01 Jun 2026 10:00:00 GMT"
        self.calls = []          # names of methods, in order
        self.folder_requests = []  # (method, path, Range header)
        self.snapshot_options = []  # (memory, quiesce) of every snapshot asked for
        self.served = {}         # "[ds] path" -> bytes of it that were sent
        self.change_window = None
        self.changes = None
        self.change_queries = []  # {vm, snapshot, disk, offset, since} of every one
        self.raw_reply = None    # (status, bytes): answers everything below /sdk
        self.task_looks = 1      # how often a task is seen running before its end
        self.lock = threading.RLock()  # guards all of this
        self.numbers = itertools.count(100)
        self.sessions, self.views, self.pages, self.tasks = {}, {}, {}, {}
        self.nfc_init()
        self.rest_init()
        fake = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else each answer waits 40 ms

            def do_POST(self):
                fake.soap(self) if self.path.startswith("/sdk") else fake.rest(self)

            def do_GET(self):
                fake.rest(self) if self.path.startswith(("/rest/", "/api/")) else fake.file(self)

            def do_DELETE(self):
                fake.rest(self)

            do_HEAD = do_GET

            def log_message(self, *arguments):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.cert, key)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True,
                                                 do_handshake_on_connect=False)
        self.host = "127.0.0.1:%d" % self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever,
                                       kwargs={"poll_interval": 0.05}, daemon=True)
        self.thread.start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    def settings(self, **more):
        return dict({"host": self.host, "username": self.user, "password": self.password,
                     "ca_file": str(self.cert)}, **more)

    def count(self, method):
        return self.calls.count(method)

    def expire_sessions(self):
        with self.lock:
            self.sessions.clear()

    # ---- SOAP ----

    def soap(self, request):
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        cookie = None
        with self.lock:
            if self.raw_reply is not None:
                status, text = self.raw_reply
            else:
                try:
                    status, text, cookie = 200, *self.dispatch(request, body)
                except Fault as f:
                    status, text = 500, self.fault_xml(f).encode()
        request.send_response(status)
        request.send_header("Content-Type", 'text/xml; charset="utf-8"')
        request.send_header("Content-Length", str(len(text)))
        if cookie:
            request.send_header("Set-Cookie", f'vmware_soap_session="{cookie}"; Path=/; HttpOnly')
        request.end_headers()
        self.send(request, text)

    @staticmethod
    def fault_xml(f):
        return ENVELOPE % ('<soapenv:Fault><faultcode>ServerFaultCode</faultcode><faultstring>'
                           f'{escape(f.message)}</faultstring><detail><{f.kind}Fault '
                           f'xmlns="urn:vim25" xsi:type="{f.kind}">{f.detail}</{f.kind}Fault>'
                           '</detail></soapenv:Fault>')

    def dispatch(self, request, body):
        root = ET.fromstring(body)
        call = root.find("{http://schemas.xmlsoap.org/soap/envelope/}Body")[0]
        method = call.tag.replace(VIM, "")
        self.calls.append(method)
        names = [child.tag.replace(VIM, "") for child in call]
        order = ORDER.get(method)
        if order is None:
            raise fault("MethodNotFound", f"no method {method}")
        places = [order.index(n) if n in order else -1 for n in names]
        if -1 in places or places != sorted(places):
            raise fault("InvalidRequest", f"{method}: parameters {names}, wanted {order}")
        if not re.fullmatch(r"urn:vim25/[0-9.]+", request.headers.get("SOAPAction", "")):
            raise fault("InvalidRequest", "no SOAPAction")
        if method not in WITHOUT_LOGIN:
            self.authenticate(request)
        if self.faults.get(method):
            planned = self.faults[method].pop(0)
            if planned is not None:
                raise planned
        text, cookie = getattr(self, "do_" + method)(call, request)
        return (ENVELOPE % f'<{method}Response xmlns="urn:vim25">{text}</{method}Response>'
                ).encode(), cookie

    def cookie_of(self, request):
        found = re.search(r'vmware_soap_session="?([^";]+)', request.headers.get("Cookie", ""))
        return found.group(1) if found else None

    def authenticate(self, request):
        cookie = self.cookie_of(request)
        if cookie not in self.sessions:
            raise fault("NotAuthenticated", "The session is not authenticated.")
        if self.session_calls is not None:
            self.sessions[cookie] += 1
            if self.sessions[cookie] > self.session_calls:
                del self.sessions[cookie]
                raise fault("NotAuthenticated", "The session is not authenticated.")

    def do_RetrieveServiceContent(self, call, request):
        return ('<returnval><rootFolder type="Folder">group-d1</rootFolder><propertyCollector '
                'type="PropertyCollector">propertyCollector</propertyCollector><viewManager '
                'type="ViewManager">ViewManager</viewManager><about><name>VMware vCenter Server'
                '</name><fullName>VMware vCenter Server 7.0.3 build-1</fullName><apiType>'
                f'{self.api_type}</apiType><apiVersion>{self.api_version}</apiVersion></about>'
                '<sessionManager type="SessionManager">SessionManager</sessionManager>'
                '</returnval>'), None

    def do_CurrentTime(self, call, request):
        self.authenticate(request)
        return "<returnval>2026-06-01T10:00:00Z</returnval>", None

    def do_Login(self, call, request):
        if (call.findtext(VIM + "userName"), call.findtext(VIM + "password")) != (self.user,
                                                                                 self.password):
            raise fault("InvalidLogin", "Cannot complete login due to an incorrect user name or "
                                        "password.")
        cookie = f"session-{next(self.numbers)}"
        self.sessions[cookie] = 0
        return f"<returnval><key>{cookie}</key><userName>{self.user}</userName></returnval>", cookie

    def do_Logout(self, call, request):
        self.sessions.pop(self.cookie_of(request), None)
        return "", None

    def do_CreateContainerView(self, call, request):
        view = f"session[{self.cookie_of(request)}]view-{next(self.numbers)}"
        self.views[view] = (self.cookie_of(request), call.findtext(VIM + "container"),
                            {t.text for t in call.findall(VIM + "type")})
        return f'<returnval type="ContainerView">{view}</returnval>', None

    def do_DestroyView(self, call, request):
        if self.views.pop(call.findtext(VIM + "_this"), None) is None:
            raise fault("ManagedObjectNotFound", "The object has already been deleted")
        return "", None

    # ---- properties ----

    def objects(self):
        for kind, id, name, parent in FOLDERS:
            yield kind, id, {"name": ("xsd:string", name),
                             "parent": ("ManagedObjectReference", parent)}.get, set()
        for vm in self.vms.values():
            yield "VirtualMachine", vm.id, vm.value, vm.hidden
            for id in vm.snapshots:
                yield ("VirtualMachineSnapshot", id,
                       {"vm": ("ManagedObjectReference", vm.id),
                        "config.hardware.device": ("ArrayOfVirtualDevice", vm.devices(True))}.get,
                       set())
        for id in self.tasks:
            yield "Task", id, self.task_value(id), set()
        for id in self.leases:
            yield "HttpNfcLease", id, self.lease_value(id), set()

    def within(self, id, container):
        """Is the object below the container?"""
        parents = {i: p for _, i, _, p in FOLDERS}
        parents.update({vm.id: vm.parent for vm in self.vms.values()})
        while id in parents:
            id = parents[id]
            if id == container:
                return True
        return container == "group-d1"

    @staticmethod
    def object_xml(kind, id, value, hidden, paths):
        text = f'<objects><obj type="{kind}">{id}</obj>'
        for path in paths:
            found = None if path in hidden else value(path)
            if found is not None:
                text += f'<propSet><name>{path}</name><val xsi:type="{found[0]}">{found[1]}</val></propSet>'
        for path in sorted(hidden & set(paths)):
            text += (f'<missingSet><path>{path}</path><fault><fault xsi:type="NoPermission">'
                     '<object type="VirtualMachine">x</object><privilegeId>System.View'
                     '</privilegeId></fault><localizedMessage/></fault></missingSet>')
        return text + "</objects>"

    def do_RetrievePropertiesEx(self, call, request):
        spec = call.find(VIM + "specSet")
        sets = [(p.findtext(VIM + "type"), [x.text for x in p.findall(VIM + "pathSet")])
                for p in spec.findall(VIM + "propSet")]
        target = spec.find(VIM + "objectSet").findtext(VIM + "obj")
        if target in self.views:
            cookie, container, types = self.views[target]
            if cookie != self.cookie_of(request):
                raise fault("ManagedObjectNotFound", "The object has already been deleted")
            chosen = [o for o in self.objects() if self.within(o[1], container)
                      and any(o[0] in DERIVED.get(t, {t}) for t in types)]
        else:
            chosen = [o for o in self.objects() if o[1] == target]
            if not chosen:
                raise fault("ManagedObjectNotFound",
                            "The object has already been deleted or has not been completely created")
        found = []
        for kind, id, value, hidden in chosen:
            for wanted, paths in sets:
                if kind in DERIVED.get(wanted, {wanted}):
                    found.append(self.object_xml(kind, id, value, hidden, paths))
                    break
        return self.page(found, request), None

    def page(self, found, request):
        size = self.page_objects or len(found)
        token = ""
        if len(found) > size:
            name = str(next(self.numbers))
            self.pages[name] = (self.cookie_of(request), found[size:])
            token = f"<token>{name}</token>"
        inside = token + "".join(found[:size])
        return f"<returnval>{inside}</returnval>" if inside else ""

    def do_ContinueRetrievePropertiesEx(self, call, request):
        cookie, found = self.pages.pop(call.findtext(VIM + "token"), (None, None))
        if cookie is None or cookie != self.cookie_of(request):
            raise fault("InvalidArgument", "A specified parameter was not correct: token",
                        "<invalidProperty>token</invalidProperty>")
        return self.page(found, request), None

    def do_CancelRetrievePropertiesEx(self, call, request):
        self.pages.pop(call.findtext(VIM + "token"), None)
        return "", None

    # ---- tasks ----

    def task(self, method, description, work):
        """work() makes the result when the task ends well."""
        id = f"task-{next(self.numbers)}"
        planned = self.task_faults.get(method, [])
        self.tasks[id] = {"looks": self.task_looks, "fault": planned.pop(0) if planned else None,
                          "work": work, "result": None, "description": description}
        return f'<returnval type="Task">{id}</returnval>', None

    def task_value(self, id):
        def value(path):
            if path != "info":
                return None
            task = self.tasks[id]
            base = f'<key>{id}</key><descriptionId>{task["description"]}</descriptionId>'
            if task["looks"] > 0:
                task["looks"] -= 1
                return "TaskInfo", base + "<state>running</state><progress>10</progress>"
            if task["fault"] is not None:
                f = task["fault"]
                return "TaskInfo", (base + '<state>error</state><error><fault xsi:type='
                                    f'"{f.kind}">{f.detail}</fault><localizedMessage>'
                                    f'{escape(f.message)}</localizedMessage></error>')
            if task["result"] is None:
                task["result"] = task["work"]()
            return "TaskInfo", base + f'<state>success</state>{task["result"]}'
        return value

    def do_CreateSnapshot_Task(self, call, request):
        vm = self.vms[call.findtext(VIM + "_this")]
        name, text = call.findtext(VIM + "name"), call.findtext(VIM + "description")
        self.snapshot_options.append((call.findtext(VIM + "memory"), call.findtext(VIM + "quiesce")))

        def work():
            id = f"snapshot-{next(self.numbers)}"
            vm.snapshots[id] = (name, text)
            for disk in vm.disks:
                disk.freeze()
            return f'<result xsi:type="ManagedObjectReference" type="VirtualMachineSnapshot">{id}</result>'
        return self.task("CreateSnapshot_Task", "VirtualMachine.createSnapshot", work)

    def do_RemoveSnapshot_Task(self, call, request):
        id = call.findtext(VIM + "_this")
        vm = next((v for v in self.vms.values() if id in v.snapshots), None)
        if vm is None:
            raise fault("ManagedObjectNotFound", "The object has already been deleted")

        def work():
            vm.snapshots.pop(id, None)
            for disk in vm.disks if not vm.snapshots else ():
                disk.melt()
                wanted = vm.facts.get("config.changeTrackingEnabled")
                if wanted is not None:  # its files are opened anew
                    disk.track(f"52 {next(self.numbers):02x} {disk.key}" if wanted == "true" else None)
            return ""
        return self.task("RemoveSnapshot_Task", "VirtualMachineSnapshot.remove", work)

    def do_ConsolidateVMDisks_Task(self, call, request):
        return self.task("ConsolidateVMDisks_Task", "VirtualMachine.consolidateDisks", lambda: "")

    # ---- reconfiguring ----

    def do_ReconfigVM_Task(self, call, request):
        vm = self.vms[call.findtext(VIM + "_this")]
        spec = call.find(VIM + "spec")
        if [child.tag for child in spec] != [VIM + "changeTrackingEnabled"]:
            return self.remove_cdroms(vm, spec)

        def work():
            vm.facts["config.changeTrackingEnabled"] = spec.findtext(VIM + "changeTrackingEnabled")
            return ""
        return self.task("ReconfigVM_Task", "VirtualMachine.reconfigure", work)

    def remove_cdroms(self, vm, spec):
        keys = []
        for change in spec:
            device = change.find(VIM + "device")
            kind = device.get("{http://www.w3.org/2001/XMLSchema-instance}type")
            if (change.tag, change.findtext(VIM + "operation"), kind) != (VIM + "deviceChange", "remove",
                                                                         "VirtualCdrom"):
                raise fault("InvalidRequest", "nothing but CD-ROM drives can be removed here")
            keys.append(int(device.findtext(VIM + "key")))
        going = [c for c in vm.cdroms if c.key in keys]
        if not keys or len(going) != len(keys):
            raise fault("InvalidDeviceSpec", "Invalid configuration for device '0'.")
        if vm.power == "poweredOn" and any(c.controller == 200 for c in going):
            self.task_faults.setdefault("ReconfigVM_Task", []).append(fault(
                "InvalidPowerState", "The attempted operation cannot be performed in the current state "
                                     "(Powered on)."))

        def work():
            vm.cdroms = [c for c in vm.cdroms if c not in going]
            return ""
        return self.task("ReconfigVM_Task", "VirtualMachine.reconfigure", work)

    # ---- changed block tracking ----

    def do_QueryChangedDiskAreas(self, call, request):
        vm = self.vms[call.findtext(VIM + "_this")]
        disk = next(d for d in vm.disks if str(d.key) == call.findtext(VIM + "deviceKey"))
        query = {"vm": vm.id, "snapshot": call.findtext(VIM + "snapshot"), "disk": disk.key,
                 "offset": int(call.findtext(VIM + "startOffset")),
                 "since": call.findtext(VIM + "changeId")}
        self.change_queries.append(query)
        if self.changes is not None:
            text = self.changes(query)
            if text is not None:
                return f"<returnval>{text}</returnval>", None
        if query["snapshot"] is None and vm.power != "poweredOff":
            raise fault("InvalidState", "The operation is not allowed in the current state")
        if query["snapshot"] is not None and query["snapshot"] not in vm.snapshots:
            raise fault("ManagedObjectNotFound", "The object has already been deleted")
        return f'<returnval>{self.change_info(disk, query)}</returnval>', None

    def change_info(self, disk, query):
        series, _, sequence = query["since"].rpartition("/")
        if query["since"] == "*":
            areas = [(at, min(CBT_BLOCK, disk.capacity - at)) for at in range(0, disk.capacity, CBT_BLOCK)
                     if disk.data[at:at + CBT_BLOCK].strip(b"\0")]
        elif disk.series is None or series != disk.series or int(sequence) > disk.sequence:
            raise fault("InvalidArgument", "A specified parameter was not correct: changeId",
                        "<invalidProperty>changeId</invalidProperty>")
        else:
            until = disk.frozen_id.rpartition("/")[2] if query["snapshot"] else disk.sequence + 1
            areas = disk.changed(int(sequence), int(until))
        start = query["offset"]
        end = min(start + (self.change_window or disk.capacity), disk.capacity)
        return window(start, end - start, [(max(a, start), min(a + n, end) - max(a, start))
                                           for a, n in areas if a < end and a + n > start])

    # ---- /folder ----

    def lookup(self, path):
        """Bytes of a datastore file by "[ds] path", None: there is none."""
        for vm in self.vms.values():
            for disk in vm.disks:
                if disk.data is None:
                    continue
                if path == disk.path:
                    return disk.descriptor if disk.descriptor is not None else descriptor(disk)
                if path == disk.path.replace(".vmdk", "-flat.vmdk"):
                    return disk.data
        return None

    def file(self, request):
        if request.path.startswith("/nfc/"):
            self.nfc_file(request)
            return
        url = urllib.parse.urlsplit(request.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        name = urllib.parse.unquote(url.path[len("/folder/"):])
        if self.api_type == "VirtualCenter":  # wants both encoded twice
            query = {k: urllib.parse.unquote(v) for k, v in query.items()}
        path = f"[{query.get('dsName')}] {name}"
        with self.lock:
            self.folder_requests.append((request.command, path, request.headers.get("Range")))
            allowed = not self.folder_needs_cookie or self.cookie_of(request) in self.sessions
            data = self.lookup(path) if query.get("dcPath") in ("DC0", "DC 1") else None
            hook = self.folder
        if hook is not None and hook(request, path):
            return
        if not allowed:
            self.answer(request, 401, b"")
        elif data is None:
            self.answer(request, 404, b"no such file")
        else:
            self.serve(request, path, data)

    def validators(self, path):
        headers = {"Last-Modified": self.modified, "Accept-Ranges": "bytes"}
        if path in self.etags:
            headers["ETag"] = self.etags[path]
        return headers

    def serve(self, request, path, data, **changes):
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range") or "")
        headers = self.validators(path)
        if wanted is None:
            self.count_served(request, path, len(data))
            self.answer(request, 200, data, **dict(headers, **changes))
            return
        first, last = int(wanted.group(1)), min(int(wanted.group(2)), len(data) - 1)
        if first >= len(data):
            self.answer(request, 416, b"")
            return
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        self.count_served(request, path, last + 1 - first)
        self.answer(request, 206, data[first:last + 1], **dict(headers, **changes))

    def count_served(self, request, path, length):
        if request.command != "HEAD":
            with self.lock:
                self.served[path] = self.served.get(path, 0) + length

    @staticmethod
    def answer(request, status, body, **headers):
        """Header names with _ for -; a value of None leaves the header out."""
        headers = {k.replace("_", "-"): v for k, v in headers.items()}
        headers.setdefault("Content-Length", str(len(body)))
        request.send_response(status)
        for name, value in headers.items():
            if value is not None:
                request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            FakeVsphere.send(request, body)

    @staticmethod
    def send(request, body):
        try:
            request.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
            request.close_connection = True  # the reader had enough


def window(start, length, areas):
    """Inside of a DiskChangeInfo."""
    return f"<startOffset>{start}</startOffset><length>{length}</length>" + "".join(
        f"<changedArea><start>{a}</start><length>{n}</length></changedArea>" for a, n in areas)


def descriptor(disk, extent=None, parent="ffffffff"):
    flat = disk.path.split("/")[-1].replace(".vmdk", "-flat.vmdk")
    extent = extent or f'RW {len(disk.data) // 512} VMFS "{flat}"'
    return (f'# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID={parent}\n'
            f'createType="vmfs"\n\n# Extent description\n{extent}\n').encode()
