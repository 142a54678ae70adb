-- What HAProxy's parser refuses, it answers with HTML of its own, which no setting changes (`h1_send_error` in its
-- `src/mux_h1.c`). So a frontend in TCP mode looks at the first bytes of a connection, and this service answers for it.
--
-- Argument: how many seconds a client may take to send the head of its request.
-- Variables: `sess.began`, when the connection was accepted (epoch), and `txn.received`, the bytes that have come.

local patience = tonumber((...))

local ANSWER = "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nX-Request-Id: %s\r\n"
    .. "Cache-Control: no-store\r\nConnection: close\r\n\r\n%s"
local ENVELOPE = '{"error":{"code":"%s","message":"%s","details":{},"job_id":null,"request_id":"%s"}}'

core.register_service("refusal", "tcp", function(applet)
    if (applet:get_var("txn.received") or 0) == 0 then
        return -- nobody has asked anything
    end
    local status, code = "400 Bad Request", "invalid_request"
    local message = "The request is not valid HTTP, or its head is too large."
    if core.now().sec - (applet:get_var("sess.began") or 0) >= patience then
        status, code, message = "408 Request Timeout", "request_timeout", "The request did not arrive in time."
    end
    local id = applet.f:uuid()
    local body = ENVELOPE:format(code, message, id)
    applet:send(ANSWER:format(status, #body, id, body))
end)
