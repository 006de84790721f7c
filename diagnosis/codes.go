package diagnosis

import "cmp"

// Thresholds of the alerts with these names, as shares from 0 to 1. What is above them is found.
const (
	portsHalfUsed       = 0.5
	portsNear           = 0.85
	portsPredicted      = 0.3 // as much has to be taken for a prediction
	reuseNotWorking     = 0.95
	bindNear            = 0.85
	timeWaitHalf        = 0.5
	timeWaitNear        = 0.9
	timeWaitOneRemote   = 0.5
	closeWaitLeak       = 0.1
	halfClosedLeak      = 0.1
	finWait2            = 0.1
	oneRemote           = 0.5
	orphansNear         = 0.5
	memoryPressure      = 1
	fileHandlesNear     = 0.85
	synFlood            = 0.8
	synQueueFull        = 0.85
	privilegedNear      = 0.85
	processFilesNear    = 0.9
	conntrackNear       = 0.85
	peerNotAnswering    = 0.5     // of the connections toward a destination,
	leastUnanswered     = 3       // and as many
	predictedWithin     = 15 * 60 // seconds
	leastLeaked         = 10      // fewer are no leak, whatever their share
	leastHarmless       = 100     // fewer TIME_WAITs are not worth a word
	reuseMostlyTimeWait = 0.5
)

// Code is a kind of finding.
type Code struct {
	Name string
	// Threshold is that of the alert of the same name; 0 where a single look is no match for
	// the alert's history, or where there is no such alert.
	Threshold float64
	// Says is what the finding means, in a few words.
	Says string
	// runbook is the name of the alert whose runbook tells more; "" is that of its own name.
	runbook string
}

// Codes returns all kinds of findings there are.
func Codes() []Code {
	return []Code{
		{Name: "TCPEphemeralPortsNearExhaustion", Threshold: portsNear, Says: "connect() to a destination fails, or is about to: no local port is left toward it"},
		{Name: "TCPEphemeralPortsExhaustionPredicted", Threshold: 1, Says: "the local ports toward a destination run out within 15 minutes"},
		{Name: "TCPEphemeralPortsHalfUsed", Threshold: portsHalfUsed, Says: "connect() to a destination is slow: half of the local ports are taken"},
		{Name: "TCPConnectionsNotReused", Says: "a program opens a connection for each request, or for a few; only --watch tells", runbook: "TCPEphemeralPortsHalfUsed"},
		{Name: "TCPEphemeralPortsHeldForAll", Says: "listening and idle bound sockets hold the ports, so that connect() finds none for any destination", runbook: "TCPBindPortsNearExhaustion"},
		{Name: "TCPBindPortsNearExhaustion", Threshold: bindNear, Says: "bind() to a free port fails, or is about to"},
		{Name: "TCPPrivilegedPortsNearExhaustion", Threshold: privilegedNear, Says: "NFS mounts fail, or are about to: no privileged source port is left"},
		{Name: "TCPTimeWaitReuseNotWorking", Threshold: reuseNotWorking, Says: "connect() fails though tcp_tw_reuse is on"},
		{Name: "TCPCloseWaitLeak", Threshold: closeWaitLeak, Says: "a program does not close connections that the peer has closed"},
		{Name: "TCPListenQueueOverflowing", Says: "an accept queue is full, and new clients are dropped"},
		{Name: "TCPAcceptQueueNotDrained", Says: "connections wait for accept()"},
		{Name: "TCPSynFlood", Threshold: synFlood, Says: "handshakes that nobody finishes fill a listener's queue"},
		{Name: "TCPSynQueueFull", Threshold: synQueueFull, Says: "a SYN queue is full, SYN cookies are off, and new clients are refused"},
		{Name: "TCPPeerNotAnswering", Says: "a destination, or the path to it, has gone, and connections toward it hang"},
		{Name: "TCPHalfClosedLeak", Threshold: halfClosedLeak, Says: "a program shuts connections down and does not close them"},
		{Name: "TCPFinWait2Accumulating", Threshold: finWait2, Says: "peers do not close"},
		{Name: "TCPLastAckAccumulating", Says: "peers, or the path to them, have gone while connections were being closed", runbook: "TCPOrphansNearLimit"},
		{Name: "TCPTimeWaitAccumulating", Threshold: timeWaitHalf, Says: "the table of TIME_WAITs is half full"},
		{Name: "TCPTimeWaitNearLimit", Threshold: timeWaitNear, Says: "the table of TIME_WAITs is nearly full"},
		{Name: "TCPTimeWaitOverflowing", Says: "the table of TIME_WAITs is full: further ones are dropped"},
		{Name: "TCPTimeWaitOneRemote", Threshold: timeWaitOneRemote, Says: "one remote makes most TIME_WAITs"},
		{Name: "TCPTimeWaitRecycleEnabled", Says: "tcp_tw_recycle is on and drops clients behind NAT"},
		{Name: "TCPTimeWaitHarmless", Says: "TIME_WAITs are here, and harm nobody", runbook: "README"},
		{Name: "TCPOneRemoteDominates", Threshold: oneRemote, Says: "one remote holds most of the connections"},
		{Name: "TCPOrphansNearLimit", Threshold: orphansNear, Says: "closed connections that still send are near their limit"},
		{Name: "TCPMemoryPressure", Threshold: memoryPressure, Says: "TCP's memory is scarce"},
		{Name: "TCPConnectionsAbortedForMemory", Says: "the kernel resets connections for want of memory or orphans"},
		{Name: "ConntrackNearLimit", Threshold: conntrackNear, Says: "the firewall's table of connections is nearly full"},
		{Name: "FileHandlesNearLimit", Threshold: fileHandlesNear, Says: "the machine's file handles are nearly used up"},
		{Name: "TCPProcessFilesNearLimit", Threshold: processFilesNear, Says: "a process has nearly as many files open as it may"},
		{Name: "WindowsDynamicPortsNearExhaustion", Says: "on Windows: the dynamic ports are nearly gone, or are", runbook: "README"},
		{Name: "TCPListenersInsidePortRange", Says: "a listener's port is one that clients are given too", runbook: "TCPBindPortsNearExhaustion"},
		{Name: "TCPListenPortTaken", Says: "a service could not begin to listen on the port that was asked for", runbook: "TCPBindPortsNearExhaustion"},
		{Name: "TCPListenPortFree", Says: "a service can begin to listen on the port that was asked for", runbook: "README"},
	}
}

// Runbook is the name of the runbook that tells more about it.
func (c Code) Runbook() string { return cmp.Or(c.runbook, c.Name) }

func runbookOf(code string) string {
	for _, c := range Codes() {
		if c.Name == code {
			return c.Runbook()
		}
	}
	return code
}
