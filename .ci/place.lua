-- Places orders, each of another customer, as fast as they are answered:
--   wrk -t2 -c64 -d15s -s .ci/place.lua http://127.0.0.1:8080/api/orders
local run, count = tostring({}):sub(8), 0
local body = '{"items":[{"productId":"PROD123","quantity":2},{"productId":"PROD456","quantity":1}]}'

request = function()
  count = count + 1
  return wrk.format("POST", nil, {
    ["Content-Type"] = "application/json",
    ["X-User-Email"] = run .. "." .. count .. "@example.com",
    ["X-User-Role"] = "CUSTOMER",
  }, body)
end
