import java.net.ServerSocket;
import java.net.Socket;
import java.util.ArrayList;
import java.util.List;

/** A server that forgets to close what its clients have closed. */
public class Leak {
    private static final List<Socket> FORGOTTEN = new ArrayList<>();

    public static void main(String[] args) throws Exception {
        ServerSocket listener = new ServerSocket(Integer.parseInt(args[0]));
        while (true) {
            Socket client = listener.accept();
            client.getInputStream().read();
            FORGOTTEN.add(client);
        }
    }
}
