// vsphere-sim: a vCenter (or ESXi) made from Debian's govmomi simulator, with VMs whose disks hold
// real bytes. Third-party code speaks SOAP and serves /folder; this program only furnishes it.
//
//	vsphere-sim -listen 127.0.0.1:0 -cert c.pem -key k.pem -vm name=web,firmware=efi,power=on,disk=/d.raw
//
// Prints one JSON line {"url": ..., "datastore": ...} when it is ready, ends at SIGTERM or SIGINT
// and then removes its own files (below TMPDIR), never the disk images.
//
// For tests: -rate limits /folder answers to so many bytes per second in total, POST
// /_sim/rate?bytes=N changes it, GET /_sim/stats tells what was served. POST /_sim/rest?status=N makes
// the REST API, and so the tags, answer that HTTP status; 0: as it should. POST /_sim/guest?mode=deaf
// lets guests accept a shutdown and not do it, notools lets them refuse it; ok: as it should. POST
// /_sim/snapshots?mode=refuse lets no snapshot be made; ok: as it should.
package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vapi/rest"
	_ "github.com/vmware/govmomi/vapi/simulator" // the tagging API
	"github.com/vmware/govmomi/vapi/tags"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"
)

// machine is one -vm argument.
type machine struct {
	name     string
	firmware string // bios or efi
	folder   string // below the VM folder of the data centre; vCenter only
	cpus     int32
	memory   int64 // MB
	powered  bool
	disks    []string // image files
	tags     []string // category:name; vCenter only
}

type machines []machine

func (m *machines) String() string { return "" }

func (m *machines) Set(text string) error {
	vm := machine{firmware: "bios", cpus: 1, memory: 256}
	for _, item := range strings.Split(text, ",") {
		key, value, _ := strings.Cut(item, "=")
		var err error
		switch key {
		case "name":
			vm.name = value
		case "firmware":
			vm.firmware = value
		case "folder":
			vm.folder = value
		case "power":
			vm.powered = value == "on"
		case "cpus":
			var n int
			n, err = strconv.Atoi(value)
			vm.cpus = int32(n)
		case "memory":
			vm.memory, err = strconv.ParseInt(value, 10, 64)
		case "tag":
			vm.tags = append(vm.tags, value)
		case "disk":
			value, err = filepath.Abs(value)
			vm.disks = append(vm.disks, value)
		default:
			err = fmt.Errorf("unknown setting %q", key)
		}
		if err != nil {
			return err
		}
	}
	if vm.name == "" {
		return fmt.Errorf("a VM needs a name")
	}
	*m = append(*m, vm)
	return nil
}

// throttle limits and counts what /folder serves.
type throttle struct {
	mutex    sync.Mutex
	rate     int64 // bytes per second, 0 = unlimited; guarded by mutex
	next     time.Time
	changed  chan struct{} // closed when the rate changes: nobody waits by an old one
	bytes    int64
	requests int64
	ranges   int64
	running  int64
	rest     int64        // HTTP status of the REST API; 0: its own
	guest    atomic.Value // of /_sim/guest
	snapshot atomic.Value // of /_sim/snapshots
}

func (t *throttle) setRate(rate int64) {
	t.mutex.Lock()
	t.rate, t.next = rate, time.Now()
	if t.changed != nil {
		close(t.changed)
	}
	t.changed = make(chan struct{})
	t.mutex.Unlock()
}

// wait books n bytes and sleeps until they may have been sent.
func (t *throttle) wait(ctx context.Context, n int) {
	atomic.AddInt64(&t.bytes, int64(n))
	t.mutex.Lock()
	if t.rate == 0 {
		t.mutex.Unlock()
		return
	}
	now := time.Now()
	if t.next.Before(now) {
		t.next = now
	}
	pause := t.next.Sub(now)
	t.next = t.next.Add(time.Duration(int64(n) * int64(time.Second) / t.rate))
	changed := t.changed
	t.mutex.Unlock()
	select {
	case <-ctx.Done():
	case <-time.After(pause):
	case <-changed:
	}
}

type slowWriter struct {
	http.ResponseWriter
	throttle *throttle
	request  *http.Request
}

func (w slowWriter) Write(data []byte) (int, error) {
	w.throttle.wait(w.request.Context(), len(data))
	return w.ResponseWriter.Write(data)
}

func (t *throttle) wrap(inner http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/folder/"):
			atomic.AddInt64(&t.requests, 1)
			atomic.AddInt64(&t.running, 1)
			defer atomic.AddInt64(&t.running, -1)
			if r.Header.Get("Range") != "" {
				atomic.AddInt64(&t.ranges, 1)
			}
			inner.ServeHTTP(slowWriter{w, t, r}, r)
		case r.URL.Path == "/_sim/rate" && r.Method == http.MethodPost:
			rate, err := strconv.ParseInt(r.URL.Query().Get("bytes"), 10, 64)
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			t.setRate(rate)
		case r.URL.Path == "/_sim/rest" && r.Method == http.MethodPost:
			status, err := strconv.ParseInt(r.URL.Query().Get("status"), 10, 64)
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			atomic.StoreInt64(&t.rest, status)
		case strings.HasPrefix(r.URL.Path, "/rest/") && atomic.LoadInt64(&t.rest) != 0:
			w.WriteHeader(int(atomic.LoadInt64(&t.rest)))
		case r.URL.Path == "/_sim/stats":
			_ = json.NewEncoder(w).Encode(map[string]int64{
				"bytes":    atomic.LoadInt64(&t.bytes),
				"requests": atomic.LoadInt64(&t.requests),
				"ranges":   atomic.LoadInt64(&t.ranges),
				"running":  atomic.LoadInt64(&t.running),
			})
		case r.URL.Path == "/_sim/guest" && r.Method == http.MethodPost:
			t.guest.Store(r.URL.Query().Get("mode"))
		case r.URL.Path == "/_sim/snapshots" && r.Method == http.MethodPost:
			t.snapshot.Store(r.URL.Query().Get("mode"))
		case r.URL.Path == "/sdk" && (t.shutdownAnswer() != "" || t.snapshot.Load() == "refuse"):
			body, err := io.ReadAll(r.Body)
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			answer := t.answer(body)
			if answer == "" {
				r.Body = io.NopCloser(bytes.NewReader(body))
				inner.ServeHTTP(w, r)
				return
			}
			w.Header().Set("Content-Type", "text/xml")
			if strings.Contains(answer, "<Fault>") {
				w.WriteHeader(http.StatusInternalServerError)
			}
			fmt.Fprint(w, answer)
		default:
			inner.ServeHTTP(w, r)
		}
	})
}

const envelope = `<?xml version="1.0" encoding="UTF-8"?><Envelope xmlns="http://schemas.xmlsoap.org/soap/envelope/"><Body>%s</Body></Envelope>`

// What the server says to a call that it was told to answer otherwise; "": it was not.
func (t *throttle) answer(body []byte) string {
	switch {
	case bytes.Contains(body, []byte("<ShutdownGuest ")):
		return t.shutdownAnswer()
	case bytes.Contains(body, []byte("<CreateSnapshot_Task ")) && t.snapshot.Load() == "refuse":
		return fmt.Sprintf(envelope, `<Fault><faultcode>ServerFaultCode</faultcode><faultstring>The snapshot was refused.</faultstring><detail><SnapshotFault xmlns="urn:vim25" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:type="SnapshotDisabled"/></detail></Fault>`)
	}
	return ""
}

// What a guest that does not shut down makes the server say; "": it does.
func (t *throttle) shutdownAnswer() string {
	switch t.guest.Load() {
	case "deaf":
		return fmt.Sprintf(envelope, `<ShutdownGuestResponse xmlns="urn:vim25"/>`)
	case "notools":
		return fmt.Sprintf(envelope, `<Fault><faultcode>ServerFaultCode</faultcode><faultstring>Cannot complete operation because VMware Tools is not running in this virtual machine.</faultstring><detail><ToolsUnavailableFault xmlns="urn:vim25" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:type="ToolsUnavailable"/></detail></Fault>`)
	}
	return ""
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

const firstDiskKey = 2000

// devices describes the controller, the disks and the network card of a new VM.
func devices(vm machine, directory string, mac string) ([]types.BaseVirtualDeviceConfigSpec, error) {
	controller := &types.ParaVirtualSCSIController{}
	controller.Key, controller.SharedBus = 1000, types.VirtualSCSISharingNoSharing
	specs := []types.BaseVirtualDeviceConfigSpec{
		&types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: controller},
	}
	for i, image := range vm.disks {
		info, err := os.Stat(image)
		if err != nil {
			return nil, err
		}
		unit := int32(i)
		if unit >= 7 { // the controller's own number
			unit++
		}
		backing := &types.VirtualDiskFlatVer2BackingInfo{DiskMode: "persistent", ThinProvisioned: types.NewBool(true)}
		backing.FileName = fmt.Sprintf("[LocalDS_0] %s/%s.vmdk", directory, diskName(vm, i))
		disk := &types.VirtualDisk{CapacityInKB: info.Size() / 1024, CapacityInBytes: info.Size()}
		disk.Key, disk.ControllerKey, disk.UnitNumber, disk.Backing = firstDiskKey+int32(i), 1000, &unit, backing
		specs = append(specs, &types.VirtualDeviceConfigSpec{
			Operation:     types.VirtualDeviceConfigSpecOperationAdd,
			FileOperation: types.VirtualDeviceConfigSpecFileOperationCreate,
			Device:        disk,
		})
	}
	network := &types.VirtualEthernetCardNetworkBackingInfo{}
	network.DeviceName = "VM Network"
	card := &types.VirtualVmxnet3{}
	card.Key, card.AddressType, card.MacAddress, card.Backing = 4000, "assigned", mac, network
	return append(specs, &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: card}), nil
}

func diskName(vm machine, index int) string {
	if index == 0 {
		return fileName(vm)
	}
	return fmt.Sprintf("%s_%d", fileName(vm), index)
}

// fileName is the VM's name on the datastore. A descriptor has no way to write a quotation mark.
func fileName(vm machine) string {
	return strings.ReplaceAll(vm.name, "\"", "_")
}

// placeDisk puts the image behind the empty files that the simulator made.
func placeDisk(base string, image string) error {
	info, err := os.Stat(image)
	if err != nil {
		return err
	}
	_ = os.Remove(base + "-flat.vmdk")
	if err := os.Symlink(image, base+"-flat.vmdk"); err != nil {
		return err
	}
	// an empty line right before RW makes qemu-img count the extent twice: keep the comment there
	text := fmt.Sprintf("# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"vmfs\"\n\n"+
		"# Extent description\nRW %d VMFS \"%s-flat.vmdk\"\n\n# The Disk Data Base\nddb.adapterType = \"lsilogic\"\n",
		info.Size()/512, filepath.Base(base))
	return os.WriteFile(base+".vmdk", []byte(text), 0o600)
}

type maker struct {
	client    *govmomi.Client
	folder    *object.Folder
	pool      *object.ResourcePool
	datastore string // its directory
	count     int
	tagging   *tags.Manager     // nil until a VM has tags
	known     map[string]string // category, or category:name, to its id
}

func newMaker(ctx context.Context, address *url.URL, datastore string) (*maker, error) {
	client, err := govmomi.NewClient(ctx, address, true)
	if err != nil {
		return nil, err
	}
	finder := find.NewFinder(client.Client)
	center, err := finder.DefaultDatacenter(ctx)
	if err != nil {
		return nil, err
	}
	finder.SetDatacenter(center)
	folders, err := center.Folders(ctx)
	if err != nil {
		return nil, err
	}
	pools, err := finder.ResourcePoolList(ctx, "*/Resources")
	if err != nil {
		return nil, err
	}
	return &maker{client: client, folder: folders.VmFolder, pool: pools[0], datastore: datastore,
		known: map[string]string{}}, nil
}

// attach gives the VM a tag, which is made with its category when it is not there yet.
func (m *maker) attach(ctx context.Context, vm types.ManagedObjectReference, tag string, user *url.Userinfo) error {
	category, name, _ := strings.Cut(tag, ":")
	if m.tagging == nil {
		client := rest.NewClient(m.client.Client)
		if err := client.Login(ctx, user); err != nil {
			return err
		}
		m.tagging = tags.NewManager(client)
	}
	if m.known[category] == "" {
		id, err := m.tagging.CreateCategory(ctx, &tags.Category{Name: category, Cardinality: "MULTIPLE"})
		if err != nil {
			return err
		}
		m.known[category] = id
	}
	if m.known[tag] == "" {
		id, err := m.tagging.CreateTag(ctx, &tags.Tag{Name: name, CategoryID: m.known[category]})
		if err != nil {
			return err
		}
		m.known[tag] = id
	}
	return m.tagging.AttachTag(ctx, m.known[tag], vm)
}

func (m *maker) vmFolder(ctx context.Context, name string) (*object.Folder, error) {
	if name == "" {
		return m.folder, nil
	}
	children, err := m.folder.Children(ctx)
	if err != nil {
		return nil, err
	}
	for _, child := range children {
		if folder, ok := child.(*object.Folder); ok {
			if found, err := folder.ObjectName(ctx); err == nil && found == name {
				return folder, nil
			}
		}
	}
	return m.folder.CreateFolder(ctx, name)
}

func (m *maker) create(ctx context.Context, vm machine, user *url.Userinfo) error {
	m.count++
	directory := fileName(vm)
	if _, err := os.Stat(filepath.Join(m.datastore, directory)); err == nil {
		directory = fmt.Sprintf("%s_%d", directory, m.count)
	}
	specs, err := devices(vm, directory, fmt.Sprintf("00:50:56:00:de:%02x", m.count&0xff))
	if err != nil {
		return err
	}
	folder, err := m.vmFolder(ctx, vm.folder)
	if err != nil {
		return err
	}
	task, err := folder.CreateVM(ctx, types.VirtualMachineConfigSpec{
		Name:         vm.name,
		GuestId:      "debian10_64Guest",
		Firmware:     vm.firmware,
		NumCPUs:      vm.cpus,
		MemoryMB:     vm.memory,
		Files:        &types.VirtualMachineFileInfo{VmPathName: fmt.Sprintf("[LocalDS_0] %s/%s.vmx", directory, fileName(vm))},
		DeviceChange: specs,
	}, m.pool, nil)
	if err != nil {
		return err
	}
	info, err := task.WaitForResult(ctx, nil)
	if err != nil {
		return err
	}
	reference := info.Result.(types.ManagedObjectReference)
	for i, image := range vm.disks {
		if err := placeDisk(filepath.Join(m.datastore, directory, diskName(vm, i)), image); err != nil {
			return err
		}
	}
	for _, tag := range vm.tags {
		if err := m.attach(ctx, reference, tag, user); err != nil {
			return err
		}
	}
	if _, err := methods.RefreshStorageInfo(ctx, m.client.Client, &types.RefreshStorageInfo{This: reference}); err != nil {
		return err
	}
	if !vm.powered {
		return nil
	}
	task, err = object.NewVirtualMachine(m.client.Client, reference).PowerOn(ctx)
	if err != nil {
		return err
	}
	return task.Wait(ctx)
}

func main() {
	var vms machines
	listen := flag.String("listen", "127.0.0.1:0", "host:port; port 0 takes a free one")
	certificate := flag.String("cert", "", "PEM certificate")
	key := flag.String("key", "", "PEM key")
	mode := flag.String("mode", "vpx", "vpx (vCenter) or esx")
	user := flag.String("user", "user", "the only account")
	password := flag.String("password", "pass", "its password")
	ready := flag.Int("machines", 2, "ready-made VMs per resource pool, with empty disks")
	rate := flag.Int64("rate", 0, "bytes per second of all /folder answers together; 0 = unlimited")
	flag.Var(&vms, "vm", "name=N[,firmware=bios|efi][,power=on][,folder=F][,cpus=N][,memory=MB][,tag=CATEGORY:NAME]...[,disk=IMAGE]...; repeatable")
	flag.Parse()

	model := simulator.VPX()
	if *mode == "esx" {
		model = simulator.ESX()
	}
	model.Machine = *ready
	check(model.Create())
	pair, err := tls.LoadX509KeyPair(*certificate, *key)
	check(err)
	model.Service.RegisterEndpoints = true
	model.Service.Listen = &url.URL{Host: *listen, User: url.UserPassword(*user, *password)}
	model.Service.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	limit := &throttle{}
	limit.setRate(*rate)
	server := model.Service.NewServer()
	server.Config.Handler = limit.wrap(server.Config.Handler)
	datastore := simulator.Map.Any("Datastore").(*simulator.Datastore).Summary.Url

	ctx := context.Background()
	furnisher, err := newMaker(ctx, server.URL, datastore)
	check(err)
	for _, vm := range vms {
		check(furnisher.create(ctx, vm, model.Service.Listen.User))
	}
	check(furnisher.client.Logout(ctx))
	check(json.NewEncoder(os.Stdout).Encode(map[string]string{
		"url":       fmt.Sprintf("https://%s/sdk", server.URL.Host),
		"datastore": datastore,
	}))
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	<-signals
	model.Remove()
}
